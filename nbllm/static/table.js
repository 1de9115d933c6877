/*
 * The requests, grouped by session, as a table with a waterfall; only the rows in view are in the page.
 */

const HEADER_HEIGHT = 36;
const SPARE_ROWS = 4; // drawn above and below the view
const TICK_WIDTH = 56;
const MOST_SPANS = 150; // drawn for a folded session

/** name: [title, what rows are sorted by, what groups are sorted by]; null is sorted last. */
const TABLE_COLUMNS = {
  name: ["Session, request", (row) => row.prompt, (group) => group.name],
  model: ["Model", modelOf, (group) => modelOf(group.rows[0])],
  status: ["Status", statusOf, (group) => group.totals.errors],
  tokens: ["Tokens", bothTokens, (group) => bothTokens(group.totals)],
  cost: ["Cost", (row) => row.cost_usd, (group) => group.totals.cost_usd],
  time: ["Time", (row) => row.duration_ms, (group) => group.totals.duration_ms],
  first: ["First", (row) => row.ttft_ms, (group) => group.totals.ttft_p50_ms],
  connection: ["Conn.", (row) => row.connection_reused, (group) => group.totals.reuse_ratio],
  waterfall: ["Waterfall", startOf, (group) => startOf(group.rows[0])],
};

function bothTokens({ input_tokens: input, output_tokens: output }) {
  return input === null && output === null ? null : (input ?? 0) + (output ?? 0);
}

// -- lines ----------------------------------------------------------------------------------------------

/** In this order by what `valueOf` tells; in the order of time where that is the same, and null last. */
function sorted(items, valueOf, isDescending) {
  const pairs = items.map((item) => [item, valueOf(item)]);
  const sign = isDescending ? -1 : 1;
  const compare = (one, other) => {
    if (one === null || other === null) return (one === null) - (other === null);
    return one === other ? 0 : sign * (one < other ? -1 : 1);
  };
  return pairs.sort((one, other) => compare(one[1], other[1])).map(([item]) => item);
}

/**
 * What stands in the table, from top to bottom: {key, group} of a session, {key, group, row} of a request.
 * `sort`: {column, isDescending}, or null for the order of time.
 */
function linesOf(groups, folded, sort) {
  const [, ofRow, ofGroup] = TABLE_COLUMNS[sort?.column] ?? [];
  const inOrder = (items, valueOf) => (sort ? sorted(items, valueOf, sort.isDescending) : items);
  const lines = [];
  for (const group of inOrder(groups, ofGroup)) {
    lines.push({ key: group.key, group });
    if (folded.has(group.key)) continue;
    for (const row of inOrder(group.rows, ofRow)) lines.push({ key: row.request_id, group, row });
  }
  return lines;
}

// -- cells ----------------------------------------------------------------------------------------------

/** The texts of a request's cells. */
function requestTexts(row, now) {
  const reused = { true: "reused", false: "new" }[row.connection_reused] ?? "";
  return {
    place: cellOf(row),
    attempt: row.attempt > 1 ? `attempt ${row.attempt}` : "",
    prompt: row.prompt ?? (row.operation === "chat" ? "" : row.operation ?? ""),
    model: modelOf(row),
    status: statusOf(row),
    tokens: tokens(row.input_tokens, row.output_tokens, compact),
    cost: money(row.cost_usd),
    time: seconds(row.status === null ? (now - row.started_at) * 1000 : row.duration_ms),
    first: seconds(row.ttft_ms),
    connection: reused,
  };
}

/** The texts of a session's cells. */
function groupTexts({ name, owner, totals }, hasOwners) {
  const { requests, errors, running } = totals;
  const states = [errors && plural(errors, "error"), running && `${count(running)} running`];
  return {
    session: name ?? UNKNOWN,
    about: joined(plural(requests, "request"), hasOwners && owner),
    status: states.filter(Boolean).join(", "),
    tokens: tokens(totals.input_tokens, totals.output_tokens, compact),
    cost: money(totals.cost_usd),
    time: seconds(totals.duration_ms),
    first: seconds(totals.ttft_p50_ms),
    connection: totals.reuse_ratio === null ? "" : percent(totals.reuse_ratio),
  };
}

/** The element of a line, and the elements in it by the names of its texts. */
function lineElement(isGroup) {
  const kind = isGroup ? "nbllm-group" : "nbllm-request";
  const line = element("div", `nbllm-row ${kind}`, null, { role: "row", id: newId("row") });
  const parts = {};
  const cell = (name, ...inner) => {
    const made = element("span", `nbllm-cell nbllm-cell-${name}`, null, { role: "gridcell" });
    inner.forEach((part) => (parts[part] = element("span", `nbllm-${part}`)));
    if (inner.length) made.append(...inner.map((part) => parts[part]));
    else parts[name] = made;
    line.append(made);
    return made;
  };
  if (isGroup) {
    const name = cell("name", "session", "about");
    name.setAttribute("aria-colspan", 2);
    name.prepend(element("span", "nbllm-fold", null, { "aria-hidden": "true" }));
  } else {
    cell("name", "place", "attempt", "prompt");
    cell("model");
  }
  for (const name of ["status", "tokens", "cost", "time", "first", "connection"]) cell(name);
  parts.bars = cell("waterfall");
  return { line, parts };
}

// -- waterfall ------------------------------------------------------------------------------------------

function bar(axis, className, from, to, colour) {
  const made = element("span", className);
  const [left, right] = [axis.x(from), axis.x(to)];
  made.style.left = `${(100 * left).toFixed(3)}%`;
  made.style.width = `${(100 * (right - left)).toFixed(3)}%`;
  if (colour) made.style.background = colour;
  return made;
}

/** A request's phases as bars; what belongs to none is neutral, and a running request grows with now. */
function requestBars(row, axis, phases, now) {
  const bars = [];
  let at = startOf(row);
  for (const [name, ms] of phasesOf(row)) {
    const made = bar(axis, "nbllm-bar", at, at + ms / 1000, phases[name]?.colour);
    made.dataset.phase = name;
    bars.push(made);
    at += ms / 1000;
  }
  const end = endOf(row, now);
  const rest = row.status === null ? "nbllm-bar nbllm-bar-running" : "nbllm-bar nbllm-bar-rest";
  if (end - at > 0.0005 || !bars.length) bars.push(bar(axis, rest, at, Math.max(at, end)));
  if (row.status === "error") bars.push(failure(axis, Math.max(at, end)));
  return bars;
}

function failure(axis, at) {
  const mark = element("span", "nbllm-failure", "✕", { "aria-hidden": "true" });
  mark.style.left = `${(100 * axis.x(at)).toFixed(3)}%`;
  return mark;
}

/** When a folded session was busy; so short pauses that nobody would see them are left out. */
function groupBars(group, axis, now) {
  const places = group.spans(now).map(([from, to]) => [axis.x(from), axis.x(to)]);
  const spans = merged(places, 1 / MOST_SPANS);
  const plain = { x: (place) => place };
  return spans.map(([from, to]) => bar(plain, "nbllm-bar nbllm-bar-group", from, to));
}

/** What the tooltip tells of a request: every phase with its exact time. */
function requestTip(row, store) {
  const heading = element("div", "nbllm-tip-heading", `${cellOf(row)} ${modelOf(row)} · ${statusOf(row)}`);
  const times = element("table", "nbllm-tip-table");
  const line = (label, ms, colour) => {
    const name = element("th", "", null, { scope: "row" });
    name.append(keyed(label, colour));
    const made = element("tr");
    made.append(name, element("td", "", exactly(ms)));
    times.append(made);
  };
  for (const [name, ms] of phasesOf(row)) {
    const { label = name, colour } = store.phases[name] ?? {};
    line(label, ms, colour);
  }
  const sofar = row.status === null ? (store.now() - row.started_at) * 1000 : row.duration_ms;
  line(row.status === null ? "so far" : "total", sofar);
  if (row.ttft_ms !== null) line("first content after", row.ttft_ms);
  const opened = ["new connection", row.connection_reason].filter(Boolean).join(": ");
  const connection = { true: "connection reused", false: opened }[row.connection_reused];
  const notes = [`began ${clock(row.started_at, true)}`, connection, row.error_message];
  return [heading, times, ...notes.filter(Boolean).map((note) => element("div", "nbllm-tip-note", note))];
}

/** What the tooltip tells of a session. */
function groupTip(group, now) {
  const { name, totals } = group;
  const spans = group.spans(now);
  const notes = [
    `${clock(spans[0][0], true)} to ${clock(spans.at(-1)[1])}`,
    `time p50 ${seconds(totals.duration_p50_ms)} · p95 ${seconds(totals.duration_p95_ms)}`,
    `${count(totals.connections_opened)} connections opened · ${percent(totals.reuse_ratio)} reused`,
  ];
  const heading = element("div", "nbllm-tip-heading", name ?? UNKNOWN);
  return [heading, ...notes.map((note) => element("div", "nbllm-tip-note", note))];
}

/** A name with its colour before it. */
function keyed(label, colour = "transparent") {
  const made = element("span", "nbllm-keyed", label);
  const mark = element("span", "nbllm-swatch");
  mark.style.background = colour;
  made.prepend(mark);
  return made;
}

/** What the colours mean. */
function legendOf(phases) {
  const legend = element("div", "nbllm-legend", null, { "aria-label": "Phases", role: "group" });
  legend.append(...Object.values(phases).map(({ label, colour }) => keyed(label, colour)));
  return legend;
}

// -- the table ------------------------------------------------------------------------------------------

function tableView(store) {
  return new RequestTable(store);
}

class RequestTable {
  #store;
  #grid = element("div", "nbllm-table", null, {
    role: "treegrid",
    tabindex: "0",
    "aria-label": "Requests by session",
    "aria-colcount": Object.keys(TABLE_COLUMNS).length,
  });
  #canvas = element("div", "nbllm-canvas", null, { role: "rowgroup" });
  #empty = element("div", "nbllm-empty");
  #pinned = lineElement(true); // the session of the first request in view
  #tip = new Tooltip();
  #heads = new Map(); // column -> its header
  #ticks = element("span", "nbllm-ticks", null, { "aria-hidden": "true" });
  #lines = [];
  #drawn = new Map(); // key of a line -> {line, parts} in the page
  #sort = null;
  #active = null; // key of the line that the keys act on
  #selected = null; // what the store's selection was when last looked
  #filter = null;
  #top = 0; // how far it is scrolled, also while it is hidden
  #isAtEnd = true; // it follows new lines
  #frame = 0;
  #observer = new ResizeObserver(() => this.#resized());

  constructor(store) {
    this.#store = store;
    this.#filter = store.filter;
    this.element = element("div", "nbllm-requests");
    this.#pinned.line.classList.add("nbllm-pinned");
    this.#pinned.line.setAttribute("role", "presentation");
    this.#pinned.line.setAttribute("aria-hidden", "true"); // its own line says the same
    this.#grid.append(this.#header(), this.#pinned.line, this.#canvas, this.#empty);
    this.element.append(this.#grid, this.#tip.element);
    this.#grid.addEventListener("scroll", () => this.#scrolled());
    this.#grid.addEventListener("keydown", (event) => this.#pressed(event));
    this.#grid.addEventListener("blur", () => this.#tip.hide());
    this.#grid.addEventListener("click", (event) => this.#open(this.#lineOf(event.target)));
    this.#grid.addEventListener("pointerover", (event) => this.#hovered(event.target));
    this.#grid.addEventListener("pointerleave", () => this.#tip.hide());
    this.#observer.observe(this.#grid);
  }

  dispose() {
    this.#observer.disconnect();
    cancelAnimationFrame(this.#frame);
  }

  /** Make the lines anew and draw them; what one looks at stays where it is. */
  update() {
    const anchor = this.#anchor();
    this.#makeLines();
    this.#grid.setAttribute("aria-rowcount", this.#lines.length + 1);
    this.#empty.hidden = this.#lines.length > 0;
    setText(this.#empty, this.#store.whyEmpty("request"));
    this.#follow(anchor);
    this.#takeSelection();
    this.#draw();
  }

  #makeLines() {
    this.#lines = linesOf(this.#store.groups(), this.#store.folded, this.#sort);
    this.#canvas.style.height = `${this.#lines.length * ROW_HEIGHT}px`;
  }

  /** Draw again where a running request is in view. */
  tick() {
    if (this.#inView().some(({ row, group }) => (row ? row.status === null : group.totals.running))) this.#draw();
  }

  focus() {
    this.#grid.focus({ preventScroll: true });
  }

  // -- scrolling

  get #height() {
    return Math.max(0, this.#grid.clientHeight - HEADER_HEIGHT);
  }

  /** Lines in view, the session of the first, and by how much that is cut. */
  #anchor() {
    const first = Math.floor(this.#top / ROW_HEIGHT);
    const seen = this.#inView();
    const offset = this.#top - first * ROW_HEIGHT;
    return { keys: seen.map(({ key }) => key), session: seen[0]?.group.key, offset };
  }

  #inView() {
    const first = Math.floor(this.#top / ROW_HEIGHT);
    return this.#lines.slice(first, Math.ceil((this.#top + this.#height) / ROW_HEIGHT));
  }

  /** Scroll to where one was: at the end, or at the same line; after another filter, to what is selected. */
  #follow({ keys, session, offset }) {
    const isRefiltered = this.#filter !== this.#store.filter;
    this.#filter = this.#store.filter;
    if (isRefiltered && this.#store.selected !== null) keys = [this.#store.selected];
    else if (isRefiltered) keys = [];
    const most = Math.max(0, this.#lines.length * ROW_HEIGHT - this.#height);
    const places = new Map(keys.map((key, i) => [key, i]));
    const kept = this.#lines.findIndex(({ key }) => places.has(key));
    let top = 0;
    if (kept >= 0) top = (kept - places.get(this.#lines[kept].key)) * ROW_HEIGHT + offset;
    else if (!isRefiltered) top = this.#lines.findIndex(({ key }) => key === session) * ROW_HEIGHT; // it was folded
    if (this.#isAtEnd && !this.#sort) top = most;
    this.#scrollTo(Math.min(Math.max(0, top), most));
  }

  #scrollTo(top) {
    this.#top = top;
    this.#grid.scrollTop = top;
  }

  #scrolled() {
    if (!this.#grid.clientHeight) return;
    this.#top = this.#grid.scrollTop;
    this.#isAtEnd = this.#top + this.#height >= this.#lines.length * ROW_HEIGHT - ROW_HEIGHT / 2;
    this.#tip.hide();
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  /** A hidden element forgets how far it was scrolled. */
  #resized() {
    if (!this.#grid.clientHeight) return;
    const most = Math.max(0, this.#lines.length * ROW_HEIGHT - this.#height);
    this.#scrollTo(this.#isAtEnd && !this.#sort ? most : Math.min(this.#top, most));
    this.#draw();
  }

  #reveal(index) {
    const at = index * ROW_HEIGHT;
    const above = this.#lines[index].row ? at - ROW_HEIGHT : at; // its session is pinned there
    if (above < this.#top) this.#scrollTo(Math.max(0, above));
    else if (at + ROW_HEIGHT > this.#top + this.#height) this.#scrollTo(at + ROW_HEIGHT - this.#height);
  }

  // -- drawing

  #header() {
    const row = element("div", "nbllm-row nbllm-head", null, { role: "row", "aria-rowindex": 1 });
    for (const [name, [title]] of Object.entries(TABLE_COLUMNS)) {
      const role = { role: "columnheader", "aria-sort": "none" };
      const head = element("span", `nbllm-cell nbllm-cell-${name}`, null, role);
      const sort = element("button", "nbllm-sort", title, { type: "button" });
      sort.addEventListener("click", () => this.#sortBy(name));
      head.append(sort);
      if (name === "waterfall") head.append(this.#ticks);
      this.#heads.set(name, head);
      row.append(head);
    }
    return row;
  }

  #sortBy(column) {
    const isSame = this.#sort?.column === column;
    if (isSame && this.#sort.isDescending) this.#sort = null;
    else this.#sort = { column, isDescending: isSame };
    for (const [name, head] of this.#heads) {
      const order = this.#sort?.isDescending ? "descending" : "ascending";
      head.setAttribute("aria-sort", name === this.#sort?.column ? order : "none");
    }
    this.#filter = null; // from the top, as after another filter
    this.update();
  }

  #draw() {
    if (!this.#height) return;
    const now = this.#store.now();
    const seen = this.#inView();
    const folded = seen.filter(({ key }) => this.#store.folded.has(key));
    const axis = new TimeAxis(
      seen.flatMap(({ row }) => row ?? []),
      now,
      folded.flatMap(({ group }) => group.spans(now)),
    );
    this.#drawAxis(axis);
    const first = Math.max(0, Math.floor(this.#top / ROW_HEIGHT) - SPARE_ROWS);
    const wanted = this.#lines.slice(first, first + seen.length + 2 * SPARE_ROWS);
    const hasOwners = new Set(wanted.map(({ group }) => group.owner)).size > 1;
    const before = this.#drawn;
    this.#drawn = new Map();
    wanted.forEach((line, i) => {
      const made = before.get(line.key) ?? lineElement(!line.row);
      before.delete(line.key);
      this.#drawn.set(line.key, made);
      this.#drawLine(made, line, first + i, { axis, now, hasOwners });
      if (!made.line.isConnected) this.#canvas.append(made.line);
    });
    for (const { line } of before.values()) line.remove();
    const isWithin = seen.length > 0 && seen[0].row !== undefined;
    this.#pinned.line.hidden = !isWithin;
    if (isWithin) {
      const { group } = seen[0];
      this.#drawLine(this.#pinned, { key: group.key, group }, 0, { axis, now, hasOwners });
    }
    const active = this.#drawn.get(this.#active);
    if (active) this.#grid.setAttribute("aria-activedescendant", active.line.id);
    else this.#grid.removeAttribute("aria-activedescendant");
  }

  #drawLine({ line, parts }, { key, group, row }, index, { axis, now, hasOwners }) {
    const isFolded = this.#store.folded.has(group.key);
    const texts = row ? requestTexts(row, now) : groupTexts(group, hasOwners);
    for (const [name, text] of Object.entries(texts)) setText(parts[name], text);
    line.style.transform = `translateY(${index * ROW_HEIGHT}px)`;
    line.dataset.key = key;
    line.dataset.status = row ? row.status ?? "running" : group.totals.errors ? "error" : "";
    line.classList.toggle("nbllm-active", key === this.#active);
    line.setAttribute("aria-rowindex", index + 2);
    line.setAttribute("aria-level", row ? 2 : 1);
    if (row) line.setAttribute("aria-selected", key === this.#store.selected);
    else line.setAttribute("aria-expanded", !isFolded);
    const bars = row ? requestBars(row, axis, this.#store.phases, now) : isFolded ? groupBars(group, axis, now) : [];
    parts.bars.replaceChildren(...bars);
  }

  /** Labels in the header, and lines and breaks behind the bars. */
  #drawAxis(axis) {
    const at = (x) => `${(100 * x).toFixed(3)}%`;
    const ticks = axis.ticks(Math.floor(this.#ticks.clientWidth / TICK_WIDTH));
    const labels = ticks.map(({ x, label }) => {
      const made = element("span", "nbllm-tick", label);
      made.style.left = at(x);
      return made;
    });
    const line = "linear-gradient(var(--nbllm-line), var(--nbllm-line))";
    const lines = ticks.map(({ x }) => `${line} ${at(x)} 0 / 1px 100% no-repeat`);
    const breaks = axis.gaps.map(({ x, width }) => {
      const place = width < 1 ? (x - width / 2) / (1 - width) : 0; // as background-position counts
      return `var(--nbllm-break) ${at(place)} 0 / ${at(width)} 100% no-repeat`;
    });
    this.#ticks.replaceChildren(...labels);
    this.#grid.style.setProperty("--nbllm-axis", [...lines, ...breaks].join(", ") || "none");
  }

  // -- keys and pointer

  #activate(index) {
    const line = this.#lines[Math.min(Math.max(0, index), this.#lines.length - 1)];
    if (!line) return;
    this.#active = line.key;
    this.#reveal(this.#lines.indexOf(line));
    if (line.row && this.#store.selected !== null) this.#select(line.key);
    this.#draw();
  }

  #select(id) {
    this.#selected = id;
    this.#store.select(id);
  }

  /** Another view has selected a request: go to it. */
  #takeSelection() {
    const { selected, requests, folded } = this.#store;
    if (selected === this.#selected) return;
    this.#selected = selected;
    const row = requests.get(selected);
    if (!row) return;
    const isOwn = ({ key }) => key === selected;
    const { key } = groupsOf([row])[0];
    if (folded.has(key)) {
      this.#store.fold(key, false);
      this.#makeLines();
    }
    const index = this.#lines.findIndex(isOwn);
    if (index < 0) return;
    this.#active = selected;
    this.#reveal(index);
  }

  #toggle(group, isFolded = !this.#store.folded.has(group.key)) {
    this.#isAtEnd = false; // what was unfolded stays in view
    this.#store.fold(group.key, isFolded);
    this.update();
  }

  #pressed(event) {
    if (event.target !== this.#grid || event.ctrlKey || event.metaKey || event.altKey) return;
    const index = this.#lines.findIndex(({ key }) => key === this.#active);
    const page = Math.max(1, Math.floor(this.#height / ROW_HEIGHT) - 1);
    const moves = {
      ArrowDown: () => this.#activate(index + 1),
      ArrowUp: () => this.#activate(index < 0 ? this.#lines.length - 1 : index - 1),
      PageDown: () => this.#activate(index + page),
      PageUp: () => this.#activate(index - page),
      Home: () => this.#activate(0),
      End: () => this.#activate(this.#lines.length - 1),
      ArrowLeft: () => this.#outward(this.#lines[index]),
      ArrowRight: () => this.#inward(this.#lines[index], index),
      Enter: () => this.#open(this.#lines[index]),
      " ": () => this.#open(this.#lines[index]),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
    const made = this.#drawn.get(this.#active);
    const isAlone = this.#store.selected === null; // else the drawer tells the same, and would be covered
    this.#hovered(isAlone ? made?.parts.bars : null);
  }

  #outward(line) {
    if (!line) return;
    if (line.row) this.#activate(this.#lines.findIndex(({ key }) => key === line.group.key));
    else this.#toggle(line.group, true);
  }

  #inward(line, index) {
    if (!line || line.row) return;
    if (this.#store.folded.has(line.key)) this.#toggle(line.group, false);
    else this.#activate(index + 1);
  }

  #open(line) {
    if (!line) return;
    this.#active = line.key;
    if (line.row) this.#select(line.key);
    else this.#toggle(line.group);
    this.#draw();
  }

  #lineOf(target) {
    const made = target.closest?.(".nbllm-row");
    return made && this.#lines.find(({ key }) => String(key) === made.dataset.key);
  }

  #hovered(target) {
    const cell = target?.closest?.(".nbllm-cell-waterfall");
    if (!cell) this.#tip.hide();
    else if (cell !== this.#tip.target) {
      const { row, group } = this.#lineOf(cell) ?? {};
      if (group) this.#tip.show(cell, ...(row ? requestTip(row, this.#store) : groupTip(group, this.#store.now())));
    }
  }
}
