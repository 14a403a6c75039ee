// Configurations of runs, and everything drawn together.

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
  const inView = rowsInView(shown);
  drawCounts(shown);
  drawTable($("#summary table"), SUMMARY, inView, "No finished run in view.");
  drawSparsity(inView);
  drawFront(inView);
  drawCurves(shown);
  drawTensors(shown);
  drawConfig(shown);
  drawProblems(shown);
  drawTable($("#runs table"), RUNS, shown, "No run in view.");
}

drawFilters();
options($("#metric"), [["", "each task's own"], ...unique(rows.flatMap((row) => Object.keys(row.metrics))).sort().map((name) => [name, name])], (at) => at === 0);
for (const id of ["#metric", "#axis", "#size"]) $(id).addEventListener("change", draw);
for (const id of ["#shown", "#loss"]) $(id).addEventListener("change", drawChosenCurves);
for (const id of ["#one", "#other", "#only"]) $(id).addEventListener("change", drawResolved);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
document.documentElement.dataset.drawn = "yes";
