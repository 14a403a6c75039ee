"use strict";
// The page's data, and small helpers. The data contain all statistics; scripts compute none.
// Texts of runs become text nodes, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs.map((run, id) => ({ ...run, id }));
const rows = data.rows.map((row, id) => ({ ...row, id })); // data.groups rows over seeds, then single students
const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F"];
const SYMBOLS = ["circle", "square", "triangle-up", "cross", "star"]; // the next one for every eight methods
const MANY = 8; // curves shown at first
const NONE = "–";

const $ = (selector) => document.querySelector(selector);
const unique = (values) => [...new Set(values)];
const number = (value) => typeof value === "number" && Number.isFinite(value);
const byValue = (a, b) => (number(a) && number(b) ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));

function groupBy(items, key) {
  const groups = new Map();
  for (const item of items) {
    const k = key(item);
    if (!groups.has(k)) groups.set(k, []);
    groups.get(k).push(item);
  }
  return groups;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const percent = (value, digits = 1) => (number(value) ? (100 * value).toFixed(digits) : NONE);
const isLoss = (metric) => data.losses.includes(metric);
const scale = (metric) => (isLoss(metric) ? 1 : 100); // fractions are shown in percent
const metricText = (value, metric) => (number(value) ? (scale(metric) * value).toFixed(isLoss(metric) ? 3 : 1) : NONE);
const signed = (value, metric) => (value > 0 ? "+" : "") + metricText(value, metric);

// A statistic, [mean, deviation or null] or null, as text.
function spread(statistic, metric, show = metricText) {
  if (!statistic) return NONE;
  const [mean, deviation] = statistic;
  return number(deviation) ? `${show(mean, metric)} ± ${metricText(deviation, metric)}` : show(mean, metric);
}

function short(value, unit = "") {
  if (!number(value)) return NONE;
  const steps = ["", "k", "M", "G", "T"];
  let at = 0;
  while (value >= 1000 && at < steps.length - 1) [value, at] = [value / 1000, at + 1];
  return `${Number(value.toPrecision(3))} ${steps[at]}${unit}`.trim();
}

function duration(seconds) {
  if (!number(seconds)) return NONE;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
