// Figures: every row or run in view as Plotly traces.

// A method keeps its colour and symbol whatever is filtered.
const methods = unique(runs.map((run) => run.method)).sort();
const methodColour = (method) => PALETTE[methods.indexOf(method) % PALETTE.length];
const methodSymbol = (method) => SYMBOLS[Math.floor(methods.indexOf(method) / PALETTE.length) % SYMBOLS.length];
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

// Legends are below the plot; long names need more height.
const legendLines = (traces) => traces.reduce((lines, trace) => lines + (trace.name?.match(/<br>/g)?.length ?? 0) + 0.4, 0);

// One figure per task in a grid; figures of tasks out of view are removed.
function perTask(container, tasks, make) {
  const there = new Map([...container.children].map((child) => [child.dataset.task, child]));
  container.replaceChildren(...(tasks.length ? tasks : [""]).map((task) => {
    const target = there.get(task) ?? element("div");
    target.dataset.task = task;
    return target;
  }));
  for (const target of container.children) make(target, target.dataset.task);
}

// Plotly interprets some HTML in labels, so names are escaped.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const wrapped = (text, width = 44) => plain(text).replace(new RegExp(`(.{1,${width}})(?:, |$)`, "g"), (_, part, at, whole) => (at + part.length < whole.length - 2 ? `${part},<br>` : part));

// The chosen metric where a row has it, else the row's own.
const metricOf = (row) => ($("#metric").value && $("#metric").value in row.metrics ? $("#metric").value : row.metric);
const valueOf = (row) => scale(metricOf(row)) * studentOf(row)[0];
const studentOf = (row) => row.metrics[metricOf(row)].student;
// Rows of one line: a method, and a seed where seeds are shown one by one.
const lineOf = (row) => JSON.stringify([row.method, metricOf(row), row.part ? row.seed : null]);
const fullName = (row) => (row.part ? `${row.method}, seed ${row.seed}` : row.method);
const lineName = (row) => wrapped(fullName(row));
const tasksOf = (inView) => unique(inView.map((row) => row.task)).sort();

function drawSparsity(inView) {
  const log = $("#axis").value === "log";
  const x = (row) => 100 * (log ? row.kept : row.sparsity);
  perTask($("#sparsity .figures"), tasksOf(inView), (target, task) => {
    const members = inView.filter((row) => row.task === task);
    const metric = members.length ? metricOf(members[0]) : "";
    const traces = [...groupBy(members, lineOf).values()].map((line) => {
      line.sort((a, b) => x(a) - x(b));
      const [first] = line;
      return {
        name: lineName(first) + (line.some((row) => row.milestone) ? "<br>◇ milestone" : ""), meta: { method: first.method },
        x: line.map(x), y: line.map(valueOf), text: line.map((row) => (row.part ? `seed ${row.seed}` : `${row.seeds} seed(s)`)),
        error_y: { type: "data", array: line.map((row) => scale(metricOf(row)) * (studentOf(row)[1] ?? 0)), thickness: 1.2, width: 4 },
        mode: "lines+markers", line: { color: methodColour(first.method), width: 2 },
        marker: { symbol: line.map((row) => (row.milestone ? "diamond-open" : methodSymbol(first.method))), size: 9 },
        hovertemplate: "%{x:.2f} %: %{y:.1f}, %{text}",
      };
    });
    const level = members.length ? data.teachers[task]?.[metric] : undefined;
    plot(target, traces, {
      title: { text: plain(`${task}: ${metric}`), font: { size: 14 } },
      xaxis: { title: { text: log ? "weights kept, %" : "sparsity in scope, %" }, type: log ? "log" : "linear", autorange: log ? "reversed" : true },
      yaxis: { title: { text: plain(metric) } },
      legend: { orientation: "h", y: -0.25 },
      margin: { l: 60, r: 56, t: 40, b: 48 }, // room for the teacher's label on the right
      shapes: number(level) ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: scale(metric) * level, y1: scale(metric) * level, line: { color: colour("faint"), dash: "dash", width: 1 } }] : [],
      annotations: number(level) ? [{ xref: "paper", x: 1, y: scale(metric) * level, text: `teacher<br>${metricText(level, metric)}`, showarrow: false, yanchor: "middle", xanchor: "left", font: { color: colour("faint"), size: 11 } }] : [],
    }, "No finished run in view.");
  });
}

function drawFront(inView) {
  const size = $("#size").value;
  const there = inView.filter((row) => number(row[size]));
  const ids = new Set(there.map((row) => row.id));
  const dominated = (row) => row.metrics[metricOf(row)][size].some((id) => ids.has(id));
  perTask($("#front .figures"), tasksOf(there), (target, task) => {
    const members = there.filter((row) => row.task === task);
    const metric = members.length ? metricOf(members[0]) : "";
    const fronts = groupBy(members.filter((row) => !dominated(row)), (row) => (row.part ? `front, seed ${row.seed}` : "front"));
    const traces = [...fronts].map(([name, front]) => {
      front.sort((a, b) => a[size] - b[size]);
      return {
        name, x: front.map((row) => row[size]), y: front.map(valueOf), mode: "lines",
        line: { color: colour("faint"), width: 1.5, shape: "hv" }, hoverinfo: "skip",
      };
    });
    const lines = [...groupBy(members, lineOf).values()];
    // Names beside the points where few methods have more than one: their sparsities would say less.
    const few = lines.length > 1 && members.length < 2 * lines.length && lines.every((line) => fullName(line[0]).length <= 40);
    for (const line of lines) {
      traces.push({
        name: lineName(line[0]), meta: { method: line[0].method }, x: line.map((row) => row[size]), y: line.map(valueOf), text: line.map((row) => sparsityLabel(row.target)),
        mode: few ? "markers" : "markers+text", textposition: "top center", textfont: { size: 10 },
        marker: { color: methodColour(line[0].method), symbol: methodSymbol(line[0].method), size: 9, opacity: line.map((row) => (dominated(row) ? 0.35 : 1)) },
        hovertemplate: "%{text}: %{y:.1f} at %{x:,.0f}",
      });
    }
    const height = few ? Math.max(480, 18 * members.length) : 380 + 17 * legendLines(traces);
    const points = members.map((row) => ({ x: row[size], y: valueOf(row), name: fullName(row).replace(/^\w+\/(?=\w+$)/, "") }));
    const named = few ? namedPoints(points, target.clientWidth - 76, height - 88) : null;
    plot(target, traces, {
      title: { text: plain(`${task}: ${metric}`), font: { size: 14 } }, height,
      xaxis: { title: { text: size === "bytes" ? "bytes" : "non-zero weights" }, exponentformat: "SI", ...(named ? { range: named.xs } : { autorange: true }) },
      yaxis: { title: { text: plain(metric) }, ...(named ? { range: named.ys } : { autorange: true }) },
      legend: { orientation: "h", y: -0.25 }, showlegend: !named, annotations: named?.annotations ?? [],
    }, "No finished run in view.");
  });
}

// Set the options of a <select>; chosen options stay chosen if they still exist.
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
  $("#curves .controls").hidden = !withCurves.length;
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
    { title: "validation", of: (run) => `val/${run.monitor}`, ofMonitor: true },
  ];
  const traces = rows.flatMap((row, at) => ids.map((id, order) => ({ run: runs[id], series: runs[id].curves[row.of(runs[id])], order }))
    .filter(({ series }) => series)
    .map(({ run, series: [steps, values], order }) => ({
      name: wrapped(run.name), meta: { run: run.id }, legendgroup: String(run.id), showlegend: at === 1 || !run.curves[rows[1].of(run)],
      x: steps, y: values.map((value) => value * (row.ofMonitor ? scale(run.monitor) : row.factor)), xaxis: "x", yaxis: at ? `y${at + 1}` : "y",
      mode: at === 2 ? "lines+markers" : "lines", marker: { size: 4 },
      line: { color: PALETTE[order % PALETTE.length], width: 1.5, shape: at === 0 ? "hv" : "linear" },
      hovertemplate: "step %{x}: %{y:.4g}",
    })));
  $("#downsampled").hidden = !ids.some((id) => runs[id].downsampled);
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
