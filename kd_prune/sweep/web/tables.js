// Tables: sortable by every column.

const orders = new Map(); // table → { column, down }

// Columns: { title, value: row → value to sort by, show: row → text, number, className }.
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

const compared = (row, name) => row.metrics[row.metric][name];
const SUMMARY = [
  { title: "task", value: (r) => r.task },
  { title: "method", value: (r) => r.method, className: () => "name" },
  { title: "target", value: (r) => r.target, show: (r) => sparsityLabel(r.target) + (r.milestone ? ", milestone" : ""), number: true },
  { title: "zeros %", value: (r) => r.sparsity, show: (r) => percent(r.sparsity, 2), number: true },
  { title: "metric", value: (r) => r.metric },
  { title: "student", value: (r) => compared(r, "student")[0], show: (r) => spread(compared(r, "student"), r.metric), number: true },
  { title: "teacher", value: (r) => compared(r, "teacher")?.[0], show: (r) => spread(compared(r, "teacher"), r.metric), number: true },
  { title: "Δ", value: (r) => compared(r, "delta")?.[0], show: (r) => spread(compared(r, "delta"), r.metric, signed), number: true },
  { title: "seeds", value: (r) => r.seeds, show: (r) => (r.part ? `seed ${r.seed}` : r.seeds), number: true },
  { title: "non-zero", value: (r) => r.nonzero, show: (r) => short(r.nonzero), number: true },
  { title: "on disk", value: (r) => r.bytes, show: (r) => short(r.bytes, "B"), number: true },
  { title: "time", value: (r) => r.seconds, show: (r) => duration(r.seconds), number: true },
];

const metricOfStage = (run, stage) => run.stages[stage]?.metrics[run.monitor];
// Every stage with its metrics and its training time: "teacher: accuracy 90.0, 61 s; student: …".
const stagesText = (run) => Object.entries(run.stages).map(([name, { metrics, seconds }]) =>
  `${name}: ${[...Object.entries(metrics).map(([metric, value]) => `${metric} ${metricText(value, metric)}`), duration(seconds)].join(", ")}`).join("; ");
const RUNS = [
  { title: "run", value: (r) => r.name, className: () => "name" },
  { title: "state", value: (r) => r.state, className: (r) => r.state },
  { title: "task", value: (r) => r.task },
  { title: "method", value: (r) => r.method, className: () => "name" },
  { title: "seed", value: (r) => r.seed, number: true },
  { title: "target", value: (r) => r.target, show: (r) => sparsityLabel(r.target), number: true },
  { title: "zeros %", value: (r) => r.sparsity, show: (r) => percent(r.sparsity, 2), number: true },
  { title: "student", value: (r) => metricOfStage(r, "student"), show: (r) => metricText(metricOfStage(r, "student"), r.monitor), number: true },
  { title: "teacher", value: (r) => metricOfStage(r, "teacher"), show: (r) => metricText(metricOfStage(r, "teacher"), r.monitor), number: true },
  { title: "non-zero", value: (r) => r.nonzero, show: (r) => short(r.nonzero), number: true },
  { title: "time", value: (r) => r.stages.student?.seconds, show: (r) => duration(r.stages.student?.seconds), number: true },
  { title: "ended", value: (r) => r.ended, show: (r) => r.ended?.replace("T", " ").slice(0, 16) ?? NONE },
  { title: "stages", value: stagesText, show: (r) => stagesText(r) || NONE, className: () => "name" },
];

const PROBLEMS = [
  { title: "where", value: (r) => r.where, className: () => "name" },
  { title: "state", value: (r) => r.state, className: (r) => r.state },
  { title: "why", value: (r) => r.why, className: () => "name" },
];
