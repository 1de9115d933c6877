/*
 * What was spent over time: bars of cost, tokens or requests, stacked by model or by session, and a table with
 * the totals, which is also the legend.
 */

const SPEND_KEYS = 7; // have a colour of their own (spend.css); the rest is "others"
const BINS_FEWEST = 12;
const BINS_MOST = 40;
const DAY = 86_400;
const BIN_SECONDS = [
  ...[0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200],
  ...[1, 2, 4, 7, 14, 28, 84, 182, 364, 728].map((days) => days * DAY),
];

/** What the bars show: its value over rows (null: unknown), as text, and the smallest step of its scale. */
const METRICS = {
  cost: { label: "Cost", of: (rows) => totalOf(rows, "cost_usd"), text: money, step: 0 },
  tokens: { label: "Tokens", of: allTokens, text: compact, step: 1 },
  requests: { label: "Requests", of: (rows) => rows.length, text: count, step: 1 },
};

const DIVISIONS = {
  model: { label: "By model", title: "Model", of: modelOf },
  session: { label: "By session", title: "Session", of: (row) => row.session_id },
};

function allTokens(rows) {
  const [input, output] = [totalOf(rows, "input_tokens"), totalOf(rows, "output_tokens")];
  return input === null ? output : input + (output ?? 0);
}

function spendView(store) {
  const view = element("div", "nbllm-spend");
  const chosen = { metric: "cost", division: "model" };
  const colours = { model: new Map(), session: new Map() }; // key -> number of its colour, while it is shown
  const metricChoice = choice("What the bars show", METRICS, chosen, "metric", update);
  const divisionChoice = choice("How they are divided", DIVISIONS, chosen, "division", update);
  const caption = element("span", "nbllm-spend-caption");
  const missing = element("span", "nbllm-spend-missing");
  const bar = element("div", "nbllm-spend-bar");
  bar.append(metricChoice.element, divisionChoice.element, missing, caption);
  const tip = new Tooltip();
  const chart = spendChart(tip);
  const table = element("table", "nbllm-spend-table");
  const empty = element("div", "nbllm-empty");
  view.append(bar, chart.element, table, empty, tip.element);

  function update() {
    const rows = store.shown();
    const metric = METRICS[chosen.metric];
    const division = DIVISIONS[chosen.division];
    metricChoice.update();
    divisionChoice.update();
    for (const part of [chart.element, table, caption, missing]) part.hidden = rows.length === 0;
    empty.hidden = rows.length > 0;
    setText(empty, store.whyEmpty("request"));
    if (rows.length === 0) return;
    const groups = spendGroups(rows, division.of, metric);
    colourGroups(groups, colours[chosen.division]);
    const bins = binsOf(rows);
    const all = { label: "All", rows, totals: spentOn(rows), value: metric.of(rows) };
    const { unpriced } = all.totals;
    setText(missing, `${count(unpriced)} unpriced, not in the bars`);
    missing.hidden = chosen.metric !== "cost" || unpriced === 0;
    setText(caption, `one bar: ${binLength(bins.size)}`);
    chart.update(bins, groups, metric);
    table.replaceChildren(...spendTable(division.title, groups, all));
  }

  return { element: view, update, dispose: () => tip.hide() };
}

/** Buttons of which one is chosen: `chosen[name]` is one of the keys of `options`. */
function choice(label, options, chosen, name, changed) {
  const group = element("div", "nbllm-choice", null, { role: "radiogroup", "aria-label": label });
  const buttons = Object.entries(options).map(([key, option]) => {
    const made = element("button", "nbllm-choice-button", option.label, { type: "button", role: "radio" });
    made.addEventListener("click", () => choose(key));
    return { key, made };
  });
  group.append(...buttons.map(({ made }) => made));
  group.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const at = buttons.findIndex(({ key }) => key === chosen[name]);
    const { key, made } = buttons.at((at + by) % buttons.length);
    choose(key);
    made.focus();
  });

  function choose(key) {
    chosen[name] = key;
    changed();
  }

  function update() {
    for (const { key, made } of buttons) {
      made.setAttribute("aria-checked", key === chosen[name]);
      made.tabIndex = key === chosen[name] ? 0 : -1;
    }
  }

  return { element: group, update };
}

// -- numbers --------------------------------------------------------------------------------------------

/** Those of `Totals` that the table shows. */
function spentOn(rows) {
  const known = ["input_tokens", "output_tokens", "cost_usd"].map((name) => [name, totalOf(rows, name)]);
  return { requests: rows.length, ...Object.fromEntries(known), unpriced: unpricedOf(rows) };
}

function unpricedOf(rows) {
  return rows.reduce((n, row) => n + (row.input_tokens !== null && row.cost_usd === null), 0);
}

/** Rows by key: [{label, rows, totals, value, colour}], the most of the metric first, then "others". */
function spendGroups(rows, keyOf, metric) {
  const found = new Map();
  for (const row of rows) {
    const key = keyOf(row);
    if (found.has(key)) found.get(key).push(row);
    else found.set(key, [row]);
  }
  const groups = [...found].map(([label, own]) => ({ label, rows: own, value: metric.of(own) }));
  const byName = (one, other) => (one.label < other.label ? -1 : 1);
  const byRows = (one, other) => other.rows.length - one.rows.length || byName(one, other);
  groups.sort((one, other) => (other.value ?? -1) - (one.value ?? -1) || byRows(one, other));
  const rest = groups.splice(SPEND_KEYS);
  if (rest.length) {
    const own = rest.flatMap((group) => group.rows);
    groups.push({ label: `others (${count(rest.length)})`, rows: own, value: metric.of(own), colour: 0 });
  }
  for (const group of groups) group.totals = spentOn(group.rows);
  return groups;
}

/** Gives each group the number of a colour: the one that it had, or one that is free. */
function colourGroups(groups, colours) {
  const named = groups.filter((group) => group.colour !== 0);
  const keys = new Set(named.map((group) => group.label));
  for (const key of [...colours.keys()]) if (!keys.has(key)) colours.delete(key);
  const taken = new Set(colours.values());
  const free = Array.from({ length: SPEND_KEYS }, (_, i) => i + 1).filter((number) => !taken.has(number));
  for (const group of named) {
    if (!colours.has(group.label)) colours.set(group.label, free.shift());
    group.colour = colours.get(group.label);
  }
}

/** Bins by the clock, of a round length in local time: {start, size, length}; seconds, and how many. */
function binsOf(rows) {
  let [first, last] = [Infinity, -Infinity];
  for (const { started_at: at } of rows) [first, last] = [Math.min(first, at), Math.max(last, at)];
  const zone = -60 * new Date(1000 * first).getTimezoneOffset();
  const startFor = (size) => Math.floor((first + zone) / size) * size - zone;
  const lengthFor = (size) => Math.floor((last - startFor(size)) / size) + 1;
  const size = BIN_SECONDS.find((one) => lengthFor(one) <= BINS_MOST) ?? BIN_SECONDS.at(-1);
  return { start: startFor(size), size, length: Math.max(BINS_FEWEST, lengthFor(size)) };
}

function binLength(size) {
  if (size >= DAY) return size === DAY ? "1 day" : `${size / DAY} days`;
  return size < 60 ? rounded(size) : size < 3600 ? `${size / 60} min` : `${size / 3600} h`;
}

/** Round values from 0 to at least `most`, three to five. */
function scaleOf(most, smallest) {
  if (!(most > 0)) return [0];
  const rough = most / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(smallest, [1, 2, 5, 10].map((n) => n * power).find((size) => size >= rough));
  return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, i) => i * step);
}

/** A bin's beginning: as much of date and time as the bins' length and number need. */
function binLabel(epoch, { size, length }) {
  const at = new Date(1000 * epoch);
  const day = at.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  if (size >= DAY) return size * length > 300 * DAY ? `${day} ${at.getFullYear()}` : day;
  const time = clock(epoch).slice(0, size < 60 ? 8 : 5);
  if (size * length > DAY) return `${day} ${time}`;
  return size < 1 ? `${time}.${Math.floor(at.getMilliseconds() / 100)}` : time;
}

// -- chart ----------------------------------------------------------------------------------------------

function spendChart(tip) {
  const lines = element("div", "nbllm-chart-lines", null, { "aria-hidden": "true" });
  const plot = element("div", "nbllm-chart-plot", null, { role: "group", "aria-label": "Spent over time" });
  const times = element("div", "nbllm-chart-times", null, { "aria-hidden": "true" });
  const chart = element("div", "nbllm-chart");
  const nothing = element("div", "nbllm-chart-nothing");
  chart.append(lines, plot, times, nothing);
  let columns = []; // [{element, parts}], kept over updates so that one of them can have the focus
  let focused = 0;

  /** Groups lie on each other in the table's order, the first at the bottom. */
  function update(bins, groups, metric) {
    const cells = divided(bins, groups, metric);
    const scale = scaleOf(Math.max(...cells.map(({ value }) => value)), metric.step);
    const top = scale.at(-1) || 1;
    const isKnown = groups.some((group) => group.value !== null);
    setText(nothing, isKnown ? `All ${metric.text(0)}.` : `${metric.label} not known.`);
    nothing.hidden = scale.length > 1;
    lines.replaceChildren(...scale.map((value) => lineAt(value / top, value === 0 ? "0" : metric.text(value))));
    while (columns.length < cells.length) columns.push(newColumn());
    columns.splice(cells.length);
    cells.forEach((cell, i) => fillColumn(columns[i], cell, top));
    if (plot.childElementCount !== columns.length) plot.replaceChildren(...columns.map((one) => one.element));
    rove(Math.min(focused, columns.length - 1));
    times.replaceChildren(...timesOf(bins));
  }

  function newColumn() {
    const column = { element: element("div", "nbllm-column", null, { role: "img" }), told: [] };
    const tell = () => tip.show(column.element, ...column.told());
    column.element.addEventListener("pointerenter", tell);
    column.element.addEventListener("focus", tell);
    column.element.addEventListener("pointerleave", () => tip.hide());
    column.element.addEventListener("blur", () => tip.hide());
    return column;
  }

  function rove(to) {
    columns.forEach((column, i) => (column.element.tabIndex = i === to ? 0 : -1));
    focused = to;
  }

  plot.addEventListener("keydown", (event) => {
    const last = columns.length - 1;
    const to = { ArrowRight: focused + 1, ArrowLeft: focused - 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    rove(Math.max(0, Math.min(last, to)));
    columns[focused].element.focus();
  });

  return { element: chart, update };
}

/** The groups' parts of each bin: [{label, value, parts: [{group, value}], unpriced, metric}]. */
function divided(bins, groups, metric) {
  const rows = Array.from({ length: bins.length }, () => groups.map(() => []));
  groups.forEach((group, i) => {
    for (const row of group.rows) {
      const bin = Math.floor((row.started_at - bins.start) / bins.size);
      rows[Math.max(0, Math.min(bins.length - 1, bin))][i].push(row);
    }
  });
  return rows.map((own, i) => {
    const [from, to] = [bins.start + i * bins.size, bins.start + (i + 1) * bins.size];
    const parts = own
      .map((some, j) => ({ group: groups[j], requests: some.length, value: metric.of(some) }))
      .filter((part) => part.requests > 0);
    const unpriced = metric === METRICS.cost ? sum(own.map(unpricedOf)) : 0;
    const label = `${binLabel(from, bins)} – ${binLabel(to, bins)}`;
    return { label, parts, unpriced, value: sum(parts.map((part) => part.value ?? 0)), metric };
  });
}

function fillColumn(column, cell, top) {
  const pieces = cell.parts
    .filter((part) => part.value > 0)
    .map((part) => {
      const piece = element("div", `nbllm-piece nbllm-key-${part.group.colour}`);
      piece.style.height = `${(100 * part.value) / top}%`;
      return piece;
    });
  if (cell.unpriced > 0) pieces.push(element("div", "nbllm-unpriced"));
  column.element.replaceChildren(...pieces);
  column.told = () => toldOf(cell);
  const values = cell.parts.map((part) => `${part.group.label} ${cell.metric.text(part.value)}`);
  const unpriced = cell.unpriced > 0 && `${count(cell.unpriced)} unpriced`;
  column.element.setAttribute("aria-label", `${cell.label}: ${joined(...values, unpriced) || "nothing"}`);
}

/** What the tooltip tells of a bin; the parts as they lie on each other. */
function toldOf({ label, parts, value, unpriced, metric }) {
  const table = element("table", "nbllm-tip-table");
  const line = (name, text, colour) => {
    const head = element("th", "", name, { scope: "row" });
    if (colour !== undefined) head.prepend(swatch(colour));
    const made = element("tr");
    made.append(head, element("td", "", text));
    table.append(made);
  };
  for (const part of [...parts].reverse()) line(part.group.label, metric.text(part.value), part.group.colour);
  if (parts.length !== 1) line("all", parts.length ? metric.text(value) : "nothing");
  if (unpriced > 0) line("unpriced", count(unpriced));
  return [element("div", "nbllm-tip-heading", label), table];
}

function lineAt(share, label) {
  const line = element("div", "nbllm-chart-line");
  line.style.bottom = `${100 * share}%`;
  line.append(element("span", "nbllm-chart-value", label));
  return line;
}

/** About six labels below the bars; none where it would not end before the edge. */
function timesOf(bins) {
  const labels = Array.from({ length: bins.length }, (_, i) => binLabel(bins.start + i * bins.size, bins));
  const isLong = labels[0].length > 8;
  const every = Math.ceil(bins.length / (isLong ? 5 : 7));
  return labels.flatMap((text, i) => {
    const place = i / bins.length;
    if (i % every || place > (isLong ? 0.88 : 0.93)) return [];
    const label = element("span", "nbllm-chart-time", text);
    label.style.left = `${100 * place}%`;
    return [label];
  });
}

// -- table ----------------------------------------------------------------------------------------------

function spendTable(title, groups, all) {
  const head = element("tr");
  const names = [title, "Share", "Requests", "Tokens in", "Tokens out", "Cost", "Unpriced"];
  head.append(...names.map((name) => element("th", null, name, { scope: "col" })));
  head.children[1].setAttribute("aria-sort", "descending");
  const parts = [element("thead"), element("tbody"), element("tfoot")];
  parts[0].append(head);
  parts[1].append(...groups.map((group) => spendRow(group, all)));
  parts[2].append(spendRow(all, all));
  return parts;
}

function spendRow(group, all) {
  const { totals } = group;
  const line = element("tr");
  const name = element("th", null, null, { scope: "row" });
  if (group.colour !== undefined) name.append(swatch(group.colour));
  name.append(element("span", "nbllm-spend-name", group.label));
  const share = all.value > 0 && group.value !== null ? group.value / all.value : null;
  const cells = {
    share: percent(share),
    requests: count(totals.requests),
    input_tokens: count(totals.input_tokens),
    output_tokens: count(totals.output_tokens),
    cost_usd: money(totals.cost_usd),
    unpriced: totals.unpriced ? count(totals.unpriced) : "",
  };
  line.append(name);
  for (const [key, text] of Object.entries(cells)) {
    line.append(element("td", "nbllm-right", text, { "data-name": key, "data-value": totals[key] ?? "" }));
  }
  return line;
}

function swatch(number) {
  return element("span", `nbllm-swatch nbllm-key-${number}`);
}
