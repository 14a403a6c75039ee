"use strict";
// From the data block to figures and tables. What runs say of themselves only ever becomes text.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs.map((run, id) => ({ ...run, id }));
const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F"];
const MANY = 8; // curves shown at first
const NONE = "–";

// ---------------------------------------------------------------- small helpers

const $ = (selector) => document.querySelector(selector);
const unique = (values) => [...new Set(values)];
const number = (value) => typeof value === "number" && Number.isFinite(value);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const byValue = (a, b) => (number(a) && number(b) ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));

function std(values) {
  if (values.length < 2) return null;
  const centre = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (values.length - 1));
}

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
const signed = (value) => (value > 0 ? "+" : "") + percent(value);
const spread = (values, show = percent) =>
  values.length < 2 ? show(values[0]) : `${show(mean(values))} ± ${percent(std(values))}`;

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

// ---------------------------------------------------------------- filters

const IMPOSSIBLE = "impossible"; // what a run that was refused asked for
const possible = (target) => target === null || (target >= 0 && target <= 1);
const sparsityLabel = (target) => (target === null ? "dense" : possible(target) ? `${Number((100 * target).toPrecision(6))} %` : String(target));
const FILTERS = [
  { key: "task", label: "task", of: (run) => [run.task] },
  { key: "method", label: "method", of: (run) => [run.method], long: true },
  { key: "target", label: "sparsity", of: (run) => unique([...run.points.map((p) => p.target), possible(run.target) ? run.target : IMPOSSIBLE]), show: sparsityLabel },
  { key: "seed", label: "seed", of: (run) => [run.seed] },
  { key: "state", label: "state", of: (run) => [run.state] },
];
const chosen = Object.fromEntries(FILTERS.map((f) => [f.key, new Set(unique(runs.flatMap(f.of)))]));
let search = "";

function visible() {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return runs.filter((run) => {
    const text = `${run.folder} ${run.method} ${run.reason ?? ""}`.toLowerCase();
    return FILTERS.every((f) => f.of(run).some((value) => chosen[f.key].has(value))) && words.every((word) => text.includes(word));
  });
}

function drawFilters() {
  for (const filter of FILTERS) {
    const values = [...chosen[filter.key]].sort((a, b) => (a === null ? -1 : b === null ? 1 : byValue(a, b)));
    const boxes = values.map((value) => {
      const box = element("input", { type: "checkbox", checked: true });
      box.dataset.filter = filter.key;
      box.dataset.value = JSON.stringify(value);
      box.addEventListener("change", () => {
        chosen[filter.key][box.checked ? "add" : "delete"](value);
        draw();
      });
      return { value, box, label: element("label", { className: filter.long ? "long" : "" }, box, ` ${filter.show ? filter.show(value) : value ?? NONE}`) };
    });
    const all = (checked, text) =>
      element("button", {
        type: "button",
        textContent: text,
        onclick: () => {
          for (const { box } of boxes) box.checked = checked;
          chosen[filter.key] = new Set(checked ? values : []);
          draw();
        },
      });
    const legend = element("legend", {}, filter.label);
    if (values.length > 1) legend.append(" ", all(true, "all"), all(false, "none"));
    $("#filters").append(element("fieldset", {}, legend, element("div", { className: "options" }, ...boxes.map((b) => b.label))));
  }
  const box = element("input", { type: "search", placeholder: "folder, method or reason", ariaLabel: "search" });
  box.addEventListener("input", () => {
    search = box.value;
    draw();
  });
  $("#filters").append(element("fieldset", {}, element("legend", {}, "search"), box));
  $("#filters").addEventListener("submit", (event) => event.preventDefault());
}

// ---------------------------------------------------------------- what is counted

// Students in view, one for each (task, method, target, kind, seed): the run that ended last.
function students(shown) {
  const latest = new Map();
  for (const run of [...shown].sort((a, b) => byValue(a.ended ?? "", b.ended ?? ""))) {
    for (const point of run.points) {
      if (!chosen.target.has(point.target)) continue;
      latest.set(JSON.stringify([run.task, run.method, point.target, point.milestone, run.seed]), { run, point });
    }
  }
  return [...latest.values()];
}

function summaryRows(shown) {
  const groups = groupBy(students(shown), ({ run, point }) => JSON.stringify([run.task, run.method, point.target, point.milestone]));
  return [...groups.values()].map((members) => {
    const [{ run, point }] = members;
    const metric = run.monitor;
    const of = (get) => members.map(({ run, point }) => get(run, point));
    return {
      task: run.task, method: run.method, target: point.target, milestone: point.milestone, metric, seeds: members.length,
      student: of((_, p) => p.student[metric]),
      teacher: of((r) => r.teacher[metric]),
      delta: of((r, p) => p.student[metric] - r.teacher[metric]),
      sparsity: mean(of((_, p) => p.sparsity)),
      nonzero: mean(of((_, p) => p.nonzero)),
      bytes: mean(of((r) => r.bytes)),
      seconds: point.milestone ? null : mean(of((r) => r.seconds ?? 0)),
    };
  }).sort((a, b) => byValue(a.task, b.task) || byValue(a.method, b.method) || (a.target ?? -1) - (b.target ?? -1));
}

// Colours belong to a method or a run, whatever is filtered away.
const methods = unique(runs.map((run) => run.method)).sort();
const methodColour = (method) => PALETTE[methods.indexOf(method) % PALETTE.length];

// ---------------------------------------------------------------- tables

const orders = new Map(); // table → { column, down }

// Columns: { title, value: row → what is sorted by, show: row → text, number, className }.
function drawTable(table, columns, rows, empty) {
  const order = orders.get(table);
  let sorted = rows;
  if (order) {
    const { value } = columns[order.column];
    const missing = (row) => value(row) === null || value(row) === undefined;
    sorted = [...rows].sort((a, b) => missing(a) - missing(b) || (missing(a) ? 0 : (order.down ? -1 : 1) * byValue(value(a), value(b))));
  }
  const head = columns.map((column, at) => {
    const button = element("button", { type: "button", textContent: column.title });
    button.addEventListener("click", () => {
      orders.set(table, { column: at, down: order?.column === at ? !order.down : false });
      drawTable(table, columns, rows, empty);
      table.querySelectorAll("th button")[at].focus();
    });
    const cell = element("th", { scope: "col", className: column.number ? "number" : "" }, button);
    cell.ariaSort = order?.column === at ? (order.down ? "descending" : "ascending") : "none";
    return cell;
  });
  const body = sorted.map((row) => element("tr", {}, ...columns.map((column) =>
    element("td", {
      className: `${column.number ? "number" : ""} ${column.className?.(row) ?? ""}`.trim(),
      textContent: column.show ? column.show(row) : column.value(row) ?? NONE,
    }))));
  if (!body.length) body.push(element("tr", {}, element("td", { colSpan: columns.length, textContent: empty })));
  table.replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}

const SUMMARY = [
  { title: "task", value: (r) => r.task },
  { title: "method", value: (r) => r.method, className: () => "name" },
  { title: "asked for", value: (r) => r.target, show: (r) => sparsityLabel(r.target) + (r.milestone ? ", on the way" : ""), number: true },
  { title: "zeros %", value: (r) => r.sparsity, show: (r) => percent(r.sparsity, 2), number: true },
  { title: "metric", value: (r) => r.metric },
  { title: "student", value: (r) => mean(r.student), show: (r) => spread(r.student), number: true },
  { title: "teacher", value: (r) => mean(r.teacher), show: (r) => spread(r.teacher), number: true },
  { title: "Δ", value: (r) => mean(r.delta), show: (r) => spread(r.delta, signed), number: true },
  { title: "seeds", value: (r) => r.seeds, number: true },
  { title: "non-zero", value: (r) => r.nonzero, show: (r) => short(r.nonzero), number: true },
  { title: "on disk", value: (r) => r.bytes, show: (r) => short(r.bytes, "B"), number: true },
  { title: "time", value: (r) => r.seconds, show: (r) => duration(r.seconds), number: true },
];

const last = (run) => run.points.at(-1);
const RUNS = [
  { title: "run", value: (r) => r.name, className: () => "name" },
  { title: "state", value: (r) => r.state, className: (r) => r.state },
  { title: "task", value: (r) => r.task },
  { title: "method", value: (r) => r.method, className: () => "name" },
  { title: "seed", value: (r) => r.seed, number: true },
  { title: "asked for", value: (r) => r.target, show: (r) => sparsityLabel(r.target), number: true },
  { title: "zeros %", value: (r) => last(r)?.sparsity, show: (r) => percent(last(r)?.sparsity, 2), number: true },
  { title: "student", value: (r) => last(r)?.student[r.monitor], show: (r) => percent(last(r)?.student[r.monitor]), number: true },
  { title: "teacher", value: (r) => r.teacher[r.monitor], show: (r) => percent(r.teacher[r.monitor]), number: true },
  { title: "non-zero", value: (r) => last(r)?.nonzero, show: (r) => short(last(r)?.nonzero), number: true },
  { title: "time", value: (r) => r.seconds, show: (r) => duration(r.seconds), number: true },
  { title: "ended", value: (r) => r.ended, show: (r) => r.ended?.replace("T", " ").slice(0, 16) ?? NONE },
];

const PROBLEMS = [
  { title: "where", value: (r) => r.where, className: () => "name" },
  { title: "state", value: (r) => r.state, className: (r) => r.state },
  { title: "why", value: (r) => r.why, className: () => "name" },
];

// ---------------------------------------------------------------- figures

const colour = (role) => getComputedStyle(document.documentElement).getPropertyValue(`--${role}`).trim();

function plot(target, traces, layout, empty) {
  if (!traces.length) {
    if (target.data) Plotly.purge(target);
    target.replaceChildren(element("p", { className: "empty", textContent: empty }));
    return;
  }
  if (!target.data) target.replaceChildren();
  const line = { gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line"), automargin: true };
  const axes = Object.fromEntries(Object.keys(layout).filter((k) => /^[xy]axis\d*$/.test(k)).map((k) => [k, { ...line, ...layout[k] }]));
  Plotly.react(target, traces, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("text"), family: getComputedStyle(document.body).fontFamily, size: 12 },
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { color: colour("text") }, namelength: 40 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("line"), activecolor: colour("accent") },
    margin: { l: 60, r: 16, t: 40, b: 48 }, height: 380 + 17 * legendLines(traces),
    ...layout, ...axes,
  }, { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });
}

// Legends stand below; long names must not take the figure's own room.
const legendLines = (traces) => traces.reduce((lines, trace) => lines + (trace.name?.match(/<br>/g)?.length ?? 0) + 0.4, 0);

// One figure per task in a grid; those of tasks that are gone go too.
function perTask(container, tasks, make) {
  const there = new Map([...container.children].map((child) => [child.dataset.task, child]));
  container.replaceChildren(...(tasks.length ? tasks : [""]).map((task) => {
    const target = there.get(task) ?? element("div");
    target.dataset.task = task;
    return target;
  }));
  for (const target of container.children) make(target, target.dataset.task);
}

// Plotly reads some HTML in labels; names of ours have none.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const wrapped = (text, width = 44) => plain(text).replace(new RegExp(`(.{1,${width}})(?:, |$)`, "g"), (_, part, at, whole) => (at + part.length < whole.length - 2 ? `${part},<br>` : part));

const metricOf = (run) => ($("#metric").value && $("#metric").value in run.teacher ? $("#metric").value : run.monitor);

function drawSparsity(shown) {
  const log = $("#axis").value === "log";
  const there = students(shown).filter(({ run }) => metricOf(run));
  const x = (point) => 100 * (log ? 1 - point.sparsity : point.sparsity);
  perTask($("#sparsity .figures"), unique(there.map(({ run }) => run.task)).sort(), (target, task) => {
    const ours = there.filter(({ run }) => run.task === task);
    const metric = ours.length ? metricOf(ours[0].run) : "";
    const traces = [];
    for (const [method, members] of groupBy(ours, ({ run }) => run.method)) {
      const places = [...groupBy(members, ({ point }) => JSON.stringify([point.target, point.milestone])).values()].map((seeds) => {
        const values = seeds.map(({ run, point }) => 100 * point.student[metricOf(run)]);
        return { x: mean(seeds.map(({ point }) => x(point))), y: mean(values), error: std(values) ?? 0, seeds, milestone: seeds[0].point.milestone };
      }).sort((a, b) => a.x - b.x);
      const onTheWay = places.some((p) => p.milestone);
      traces.push({
        name: wrapped(method) + (onTheWay ? "<br>◇ saved on the way" : ""), meta: { method },
        x: places.map((p) => p.x), y: places.map((p) => p.y), text: places.map((p) => `${p.seeds.length} seed(s)`),
        error_y: { type: "data", array: places.map((p) => p.error), thickness: 1.2, width: 4 },
        mode: "lines+markers", line: { color: methodColour(method), width: 2 },
        marker: { symbol: places.map((p) => (p.milestone ? "diamond-open" : "circle")), size: 9 },
        hovertemplate: "%{x:.2f} %: %{y:.1f}, %{text}",
      });
    }
    const teachers = unique(ours.map(({ run }) => JSON.stringify([run.seed, run.teacher[metricOf(run)]]))).map((t) => 100 * JSON.parse(t)[1]);
    const level = teachers.length ? mean(teachers) : null;
    plot(target, traces, {
      title: { text: plain(`${task}: ${metric}`), font: { size: 14 } },
      xaxis: { title: { text: log ? "weights kept, %" : "sparsity in scope, %" }, type: log ? "log" : "linear", autorange: log ? "reversed" : true },
      yaxis: { title: { text: plain(metric) } },
      legend: { orientation: "h", y: -0.25 },
      margin: { l: 60, r: 56, t: 40, b: 48 }, // on the right, the teacher's label
      shapes: level === null ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: level, y1: level, line: { color: colour("faint"), dash: "dash", width: 1 } }],
      annotations: level === null ? [] : [{ xref: "paper", x: 1, y: level, text: `teacher<br>${level.toFixed(1)}`, showarrow: false, yanchor: "middle", xanchor: "left", font: { color: colour("faint"), size: 11 } }],
    }, "No finished run in view.");
  });
}

function drawFront(shown) {
  const size = $("#size").value;
  const there = students(shown);
  perTask($("#front .figures"), unique(there.map(({ run }) => run.task)).sort(), (target, task) => {
    const groups = groupBy(there.filter(({ run }) => run.task === task), ({ run, point }) => JSON.stringify([run.method, point.target, point.milestone]));
    const places = [...groups.values()].map((seeds) => {
      const [{ run, point }] = seeds;
      return {
        method: run.method, label: sparsityLabel(point.target), metric: metricOf(run),
        x: mean(seeds.map((s) => (size === "bytes" ? s.run.bytes : s.point.nonzero))),
        y: mean(seeds.map((s) => 100 * s.point.student[metricOf(s.run)])),
      };
    });
    const beaten = (p) => places.some((q) => q.x <= p.x && q.y >= p.y && (q.x < p.x || q.y > p.y));
    const front = places.filter((p) => !beaten(p)).sort((a, b) => a.x - b.x);
    const traces = [];
    if (front.length) {
      traces.push({
        name: "front", x: front.map((p) => p.x), y: front.map((p) => p.y), mode: "lines",
        line: { color: colour("faint"), width: 1.5, shape: "hv" }, hoverinfo: "skip",
      });
    }
    for (const [method, members] of groupBy(places, (p) => p.method)) {
      traces.push({
        name: wrapped(method), meta: { method }, x: members.map((p) => p.x), y: members.map((p) => p.y), text: members.map((p) => p.label),
        mode: "markers+text", textposition: "top center", textfont: { size: 10 },
        marker: { color: methodColour(method), size: 9, opacity: members.map((p) => (beaten(p) ? 0.35 : 1)) },
        hovertemplate: "%{text}: %{y:.1f} at %{x:,.0f}",
      });
    }
    plot(target, traces, {
      title: { text: plain(`${task}: ${places[0]?.metric}`), font: { size: 14 } },
      xaxis: { title: { text: size === "bytes" ? "bytes" : "non-zero weights" }, exponentformat: "SI" },
      yaxis: { title: { text: plain(places[0]?.metric) } },
      legend: { orientation: "h", y: -0.25 },
    }, "No finished run in view.");
  });
}

// Options of a <select>, keeping what was chosen where it is still there.
function options(select, values, fallback) {
  const before = new Set([...select.selectedOptions].map((option) => option.value));
  const kept = values.some(([value]) => before.has(String(value)));
  select.replaceChildren(...values.map(([value, text], at) => {
    const on = kept ? before.has(String(value)) : fallback(at);
    return element("option", { value, textContent: text, selected: on });
  }));
}

function drawCurves(shown) {
  const withCurves = shown.filter((run) => Object.keys(run.curves).length);
  options($("#shown"), withCurves.map((run) => [run.id, run.name]), (at) => at < MANY);
  const names = unique(withCurves.flatMap((run) => Object.keys(run.curves)));
  options($("#loss"), names.filter((name) => name.startsWith("train/")).sort().map((name) => [name, name.slice(6)]),
    (at) => names.filter((n) => n.startsWith("train/")).sort()[at] === "train/loss");
  drawChosenCurves();
}

function drawChosenCurves() {
  const ids = [...$("#shown").selectedOptions].map((option) => Number(option.value));
  const rows = [
    { title: "sparsity", of: () => "sparsity/counted", factor: 100 },
    { title: $("#loss").value.slice(6) || "loss", of: () => $("#loss").value, factor: 1 },
    { title: "validation", of: (run) => `val/${run.monitor}`, factor: 100 },
  ];
  const traces = rows.flatMap((row, at) => ids.map((id, order) => ({ run: runs[id], series: runs[id].curves[row.of(runs[id])], order }))
    .filter(({ series }) => series)
    .map(({ run, series: [steps, values], order }) => ({
      name: wrapped(run.name), meta: { run: run.id }, legendgroup: String(run.id), showlegend: at === 1 || !run.curves[rows[1].of(run)],
      x: steps, y: values.map((value) => value * row.factor), xaxis: "x", yaxis: at ? `y${at + 1}` : "y",
      mode: at === 2 ? "lines+markers" : "lines", marker: { size: 4 },
      line: { color: PALETTE[order % PALETTE.length], width: 1.5, shape: at === 0 ? "hv" : "linear" },
      hovertemplate: "step %{x}: %{y:.4g}",
    })));
  $("#thinned").hidden = !ids.some((id) => runs[id].thinned);
  plot($("#curves .figure"), traces, {
    height: 640, grid: { rows: 3, columns: 1, subplots: [["xy"], ["xy2"], ["xy3"]], roworder: "top to bottom" },
    xaxis: { title: { text: "optimizer steps" }, anchor: "y3" },
    yaxis: { title: { text: "sparsity, %" } }, yaxis2: { title: { text: plain(rows[1].title) }, type: "log" }, yaxis3: { title: { text: "validation metric" } },
    legend: { orientation: "h", y: -0.12, tracegroupgap: 0 },
  }, "No run in view has curves.");
}

function drawTensors(shown) {
  const counted = shown.filter((run) => run.table !== null);
  const groups = [...groupBy(counted, (run) => run.table)].sort((a, b) => b[1].length - a[1].length);
  const [table, members] = groups[0] ?? [null, []];
  const names = table === null ? [] : data.tensors[table];
  const named = members.length <= 12;
  const label = (name) => name.replace(/^.*?(?=layers?\.\d)/, "").replace(/\.weight$/, "");
  plot($("#tensors .figure"), members.length ? [{
    type: "heatmap", x: members.map((run) => plain(run.name)), y: names.map(([name]) => plain(label(name))),
    z: names.map(([, size], at) => members.map((run) => (100 * run.zeros[at]) / size)),
    text: names.map(([name, size], at) => members.map((run) => `${plain(name)}<br>${run.zeros[at].toLocaleString("en")} of ${size.toLocaleString("en")} are zero`)),
    hovertemplate: "%{x}<br>%{text}<br>%{z:.2f} %", colorscale: "Viridis", zmin: 0, zmax: 100, colorbar: { title: { text: "zeros, %" } }, name: "",
  }] : [], {
    height: Math.max(260, 120 + 15 * names.length + (named ? 120 : 0)),
    xaxis: { showticklabels: named, tickangle: 30, title: { text: named ? "run" : `${members.length} runs; point at one for its name` } },
    yaxis: { autorange: "reversed", tickfont: { size: 10 }, dtick: 1 },
    title: { text: groups.length > 1 ? "runs of the most frequent architecture in view" : "", font: { size: 12 } },
  }, "No finished run in view.");
}

// ---------------------------------------------------------------- configuration

const configOf = (run) => ({ ...data.common, ...run.config });

function drawConfig(shown) {
  const known = shown.filter((run) => Object.keys(run.config).length || Object.keys(data.common).length);
  const keys = unique(known.flatMap((run) => Object.keys(run.config))).sort()
    .filter((key) => new Set(known.map((run) => configOf(run)[key])).size > 1);
  drawTable($("#differences"), [
    { title: "run", value: (run) => run.name, className: () => "name" },
    ...keys.map((key) => ({ title: key, value: (run) => configOf(run)[key] })),
  ], keys.length ? known : [], "All runs in view have the same configuration.");
  options($("#one"), known.map((run) => [run.id, run.name]), (at) => at === 0);
  options($("#other"), known.map((run) => [run.id, run.name]), (at) => at === Math.min(1, known.length - 1));
  drawResolved();
}

function drawResolved() {
  const [one, other] = ["#one", "#other"].map((select) => runs[Number($(select).value)]);
  const configs = [one, other].map((run) => (run ? configOf(run) : {}));
  const keys = unique(configs.flatMap((config) => Object.keys(config))).sort();
  const differs = (key) => configs[0][key] !== configs[1][key];
  const rows = keys.filter((key) => !$("#only").checked || differs(key));
  drawTable($("#resolved"), [
    { title: "key", value: (key) => key },
    ...[one, other].map((run, at) => ({ title: run ? run.name : NONE, value: (key) => configs[at][key], className: () => "name" })),
  ], rows, "The two are the same.");
  if (!orders.has($("#resolved"))) $("#resolved").querySelectorAll("tbody tr").forEach((row, at) => row.classList.toggle("differs", rows.length > 0 && differs(rows[at])));
}

// ---------------------------------------------------------------- all of it

function drawCounts(shown) {
  const states = [...groupBy(shown, (run) => run.state)].map(([state, members]) => `${members.length} ${state}`).sort();
  $("#counts").textContent = `${shown.length} of ${runs.length} runs in view: ${states.join(", ") || "none"}. Made ${data.made}.`;
}

function drawProblems(shown) {
  const rows = shown.filter((run) => run.state !== "finished").map((run) => ({ where: run.folder, state: run.state, why: run.reason }));
  const broken = data.broken.map(([where, why]) => ({ where, state: "not read", why }));
  drawTable($("#problems table"), PROBLEMS, [...rows, ...broken], "Every run in view is finished, and every file could be read.");
}

function draw() {
  const shown = visible();
  drawCounts(shown);
  drawTable($("#summary table"), SUMMARY, summaryRows(shown), "No finished run in view.");
  drawSparsity(shown);
  drawFront(shown);
  drawCurves(shown);
  drawTensors(shown);
  drawConfig(shown);
  drawProblems(shown);
  drawTable($("#runs table"), RUNS, shown, "No run in view.");
}

drawFilters();
options($("#metric"), [["", "each task's own"], ...unique(runs.flatMap((run) => Object.keys(run.teacher))).sort().map((name) => [name, name])], (at) => at === 0);
for (const id of ["#metric", "#axis", "#size"]) $(id).addEventListener("change", draw);
for (const id of ["#shown", "#loss"]) $(id).addEventListener("change", drawChosenCurves);
for (const id of ["#one", "#other", "#only"]) $(id).addEventListener("change", drawResolved);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
document.documentElement.dataset.drawn = "yes";
