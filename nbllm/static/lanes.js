/*
 * Connections as lanes: a line for as long as a connection was open, and on it the requests that used it, over
 * a time axis that all lanes share. Reuse, gaps and what ran at the same time can be seen.
 *
 * Only the lanes in view are in the page. Tab reaches one lane or request, arrow keys go on from there.
 */

const LANES_BEYOND = 4; // painted above and below what is seen
const NARROW_PX = 3; // requests that begin closer together share a bar
const TICK_PX = 90;
const FLIGHT_STEPS = 600; // of the curve of requests in flight
const LANES_GROW_MS = 500; // how often bars grow while a request runs, at most

function lanesView(store) {
  return new Lanes(store);
}

class Lanes {
  element = element("div", "nbllm-lanes");
  #store;
  #told = element("span");
  #legend = element("span", "nbllm-lanes-legend", "pauses cut short");
  #head = lanesHead();
  #backdrop = element("div", "nbllm-lanes-backdrop", null, { "aria-hidden": "true" });
  #body = element("div", "nbllm-lanes-body", null, { role: "grid", "aria-label": "Connections" });
  #scroller = element("div", "nbllm-lanes-scroll");
  #empty = element("div", "nbllm-empty");
  #tip = new Tooltip();
  #lines = []; // what is below each other: hosts and lanes
  #flight = flightOf([], 0);
  #drawn = new Map(); // key of a line -> its parts in the page
  #meanings = new WeakMap(); // element of a label or bar -> {line, bar}
  #place = { key: null, id: null }; // where Tab leads to: a lane, and a bar's request (null: its label)
  #isRunning = false;
  #updatedAt = 0;
  #frame = 0;
  #observer = new ResizeObserver(() => this.#draw());

  constructor(store) {
    this.#store = store;
    this.element.style.setProperty("--nbllm-stream", store.phases.stream?.colour ?? "var(--nbllm-accent)");
    this.summary = element("div", "nbllm-lanes-summary");
    this.summary.append(this.#told, this.#legend);
    this.#body.append(this.#backdrop);
    this.#scroller.append(this.#head.element, this.#body);
    this.element.append(this.summary, this.#scroller, this.#empty, this.#tip.element);
    this.#body.addEventListener("keydown", (event) => this.#pressed(event));
    this.#body.addEventListener("click", (event) => this.#clicked(event));
    for (const kind of ["pointerover", "focusin"]) {
      this.#body.addEventListener(kind, (event) => this.#tell(this.#meant(event)));
    }
    for (const kind of ["pointerleave", "focusout"]) this.#body.addEventListener(kind, () => this.#tip.hide());
    this.#scroller.addEventListener("scroll", () => {
      this.#frame ||= requestAnimationFrame(() => this.#draw());
    });
    this.#observer.observe(this.#scroller);
  }

  dispose() {
    this.#observer.disconnect();
    cancelAnimationFrame(this.#frame);
    this.#tip.hide();
  }

  /** Look at the rows anew. */
  update() {
    const store = this.#store;
    const now = store.now();
    const lanes = lanesOf(store);
    const rows = lanes.flatMap((lane) => lane.uses);
    this.#updatedAt = performance.now();
    this.#isRunning = rows.some((row) => row.status === null);
    this.#lines = laneLinesOf(lanes);
    this.#flight = flightOf(rows, now);
    this.summary.hidden = this.#scroller.hidden = lanes.length === 0;
    this.#empty.hidden = lanes.length > 0;
    setText(this.#empty, store.whyEmpty("connection"));
    setText(this.#told, summaryOf(store, lanes, now));
    this.#body.style.height = `${this.#lines.length * ROW_HEIGHT}px`;
    this.#body.setAttribute("aria-rowcount", this.#lines.length);
    this.#draw();
  }

  /** Let the bars of running requests grow. */
  tick() {
    if (this.#isRunning && performance.now() - this.#updatedAt >= LANES_GROW_MS) this.update();
  }

  // -- drawing

  /** The lines in view, over an axis of their own: with very many lanes one for all would tell nothing. */
  #draw() {
    this.#frame = 0;
    if (!this.#scroller.clientHeight) return;
    const now = this.#store.now();
    const first = Math.floor(this.#scroller.scrollTop / ROW_HEIGHT);
    const room = this.#scroller.clientHeight - this.#head.element.offsetHeight;
    const last = first + Math.ceil(room / ROW_HEIGHT) + 1;
    const seen = this.#lines.slice(first, last).filter((line) => line.lane);
    const rows = seen.flatMap((line) => line.lane.uses);
    const axis = new TimeAxis(rows.length ? rows : seen.map((line) => openTimeOf(line.lane)), now);
    const width = this.#head.draw(axis, this.#flight);
    const breaks = axis.gaps.filter((gap) => gap.width * width >= NARROW_PX);
    this.#legend.hidden = axis.gaps.length === 0;
    this.#backdrop.replaceChildren(
      ...axis.ticks(width / TICK_PX).map(({ x }) => markAt("nbllm-lanes-tick", x)),
      ...breaks.map((gap) => markAt("nbllm-lanes-break", gap.x - gap.width / 2, gap.width)),
    );
    const wanted = new Set(this.#lines.slice(Math.max(0, first - LANES_BEYOND), last + LANES_BEYOND));
    const held = this.#body.contains(document.activeElement) && this.#lineOf(this.#place.key);
    if (held) wanted.add(held); // what has the focus stays in the page
    const before = this.#drawn;
    this.#drawn = new Map();
    for (const line of wanted) {
      const made = before.get(line.key) ?? (line.lane ? newLane() : newHost());
      before.delete(line.key);
      this.#drawn.set(line.key, made);
      made.line.style.top = `${line.index * ROW_HEIGHT}px`;
      made.line.setAttribute("aria-rowindex", line.index + 1);
      if (line.lane) drawLane(made, line, { axis, now, width, store: this.#store, meanings: this.#meanings });
      else drawHost(made, line);
      if (!made.line.isConnected) this.#body.append(made.line);
    }
    for (const { line } of before.values()) line.remove();
    this.#rove();
    if (this.#tip.target) this.#tell(this.#tip.target.isConnected ? this.#tip.target : null);
  }

  // -- keys and pointer

  #lineOf(key) {
    return this.#lines.find((line) => line.key === key);
  }

  /** The label of a drawn lane, and its bars. */
  #itemsOf(key) {
    const made = this.#drawn.get(key);
    return made?.bars ? [made.label, ...made.bars.values()] : [];
  }

  #meant(event) {
    const target = event.target.closest?.("[tabindex]");
    return this.#meanings.has(target) ? target : null;
  }

  #tell(target) {
    if (target) this.#tip.show(target, ...toldOfLane(this.#meanings.get(target), this.#store));
    else this.#tip.hide();
  }

  /** One element alone is reached by Tab. */
  #rove() {
    const made = this.#drawn.get(this.#place.key);
    const chosen = made?.bars?.get(this.#place.id) ?? made?.label ?? this.#body.querySelector("[tabindex]");
    for (const item of this.#body.querySelectorAll('[tabindex="0"]')) if (item !== chosen) item.tabIndex = -1;
    if (chosen) chosen.tabIndex = 0;
    return chosen;
  }

  /** Go to a lane's label, or to the bar that `pick` chooses of its items. */
  #go(line, pick = (items) => items[0]) {
    const top = line.index * ROW_HEIGHT;
    const room = this.#scroller.clientHeight - this.#head.element.offsetHeight - ROW_HEIGHT;
    const { scrollTop } = this.#scroller;
    this.#scroller.scrollTop = Math.max(top - room, Math.min(top, scrollTop));
    this.#place = { key: line.key, id: null };
    this.#draw();
    const item = pick(this.#itemsOf(line.key));
    this.#place.id = this.#meanings.get(item).bar?.id ?? null;
    this.#rove().focus({ preventScroll: true });
  }

  #pressed(event) {
    const from = this.#meanings.get(event.target);
    if (!from || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.#itemsOf(from.line.key).indexOf(event.target);
    const page = Math.max(1, Math.floor(this.#scroller.clientHeight / ROW_HEIGHT) - 3);
    const inRange = (items, index) => items[Math.max(0, Math.min(items.length - 1, index))];
    const along = (index) => this.#go(from.line, (items) => inRange(items, index));
    const moves = {
      ArrowLeft: () => along(at - 1),
      ArrowRight: () => along(at + 1),
      Home: () => along(0),
      End: () => along(Infinity),
      ArrowUp: () => this.#goAcross(from, -1),
      ArrowDown: () => this.#goAcross(from, 1),
      PageUp: () => this.#goAcross(from, -page),
      PageDown: () => this.#goAcross(from, page),
      Enter: () => this.#choose(from),
      " ": () => this.#choose(from),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  }

  /** The lane `by` further, and in it the bar that is nearest in time. */
  #goAcross({ line, bar }, by) {
    let to = Math.max(0, Math.min(this.#lines.length - 1, line.index + by));
    while (this.#lines[to] && !this.#lines[to].lane) to += by < 0 ? -1 : 1;
    if (!this.#lines[to]) return;
    const distance = (item) => Math.abs(this.#meanings.get(item).bar.from - bar.from);
    this.#go(this.#lines[to], ([label, ...bars]) =>
      bar && bars.length ? bars.reduce((one, other) => (distance(other) < distance(one) ? other : one)) : label,
    );
  }

  #clicked(event) {
    const target = this.#meant(event);
    if (target) this.#choose(this.#meanings.get(target));
  }

  #choose({ line, bar }) {
    this.#place = { key: line.key, id: bar?.id ?? null };
    this.#rove();
    if (bar) this.#store.select(bar.id);
  }
}

// -- what the lanes tell --------------------------------------------------------------------------------

/**
 * Lanes by host, in the order of opening: {key, name, host, connection, uses, all}, where `uses` are the
 * requests that the filter leaves, oldest first, and `all` all of them.
 */
function lanesOf(store) {
  const used = byConnection(store.requests.values());
  const shown = store.isFiltered ? byConnection(store.shown()) : used;
  const known = new Map(store.connections);
  for (const [id, rows] of used) if (!known.has(id)) known.set(id, assumed(rows));
  const hasOneKernel = new Set([...known.values()].map((one) => one.kernel_id)).size <= 1;
  const lanes = [];
  for (const [id, connection] of known) {
    const uses = shown.get(id) ?? [];
    if (store.isFiltered && uses.length === 0) continue;
    const name = hasOneKernel ? id.split("-").at(-1) : id;
    const host = `${connection.host ?? UNKNOWN}:${connection.port ?? UNKNOWN}`;
    lanes.push({ key: id, name, host, connection, uses, all: used.get(id) ?? [] });
  }
  return lanes.sort((one, other) => one.connection.opened_at - other.connection.opened_at);
}

function byConnection(rows) {
  const found = new Map();
  for (const row of rows) {
    if (row.connection_id === null) continue;
    if (found.has(row.connection_id)) found.get(row.connection_id).push(row);
    else found.set(row.connection_id, [row]);
  }
  return found;
}

/** A connection of which only the requests are known. */
function assumed(rows) {
  const { connection_id, kernel_id, server_address, server_port } = rows[0];
  const unknown = { peer: null, local_port: null, tls_version: null, closed_at: null, close_reason: null };
  const known = { connection_id, kernel_id, host: server_address, port: server_port };
  return { ...unknown, ...known, opened_at: usedFrom(rows[0]) };
}

/** Hosts, each above its lanes: {index, key, lane} or {index, key, host, lanes}. */
function laneLinesOf(lanes) {
  const hosts = new Map();
  for (const lane of lanes) {
    if (hosts.has(lane.host)) hosts.get(lane.host).push(lane);
    else hosts.set(lane.host, [lane]);
  }
  const lines = [];
  for (const [host, own] of hosts) {
    lines.push({ key: `host ${host}`, host, lanes: own });
    lines.push(...own.map((lane) => ({ key: lane.key, lane })));
  }
  lines.forEach((line, index) => (line.index = index));
  return lines;
}

/** When a request got to its connection: it may have waited for one. Epoch seconds. */
function usedFrom(row) {
  return row.started_at + (row.blocked_ms ?? 0) / 1000;
}

/** Milliseconds of name resolution, TCP and TLS. */
function handshakeOf(row) {
  return row.connection_reused === false ? (row.dns_ms ?? 0) + (row.connect_ms ?? 0) : 0;
}

/** A connection's open time as something that a `TimeAxis` understands. */
function openTimeOf({ connection: { opened_at, closed_at } }) {
  const duration_ms = 1000 * Math.max(0.001, (closed_at ?? opened_at) - opened_at);
  return { started_at: opened_at, status: "ok", duration_ms };
}

/** How many were in flight: {most, levels}; from each moment of `levels` on it was that many, [moment, n]. */
function flightOf(rows, now) {
  const changes = rows.flatMap((row) => [[usedFrom(row), 1], [endOf(row, now), -1]]);
  changes.sort((one, other) => one[0] - other[0] || one[1] - other[1]);
  let [level, most] = [0, 0];
  const levels = changes.map(([at, change]) => {
    level += change;
    most = Math.max(most, level);
    return [at, level];
  });
  return { most, levels };
}

/** The highest number in flight of each of `FLIGHT_STEPS` steps over the axis. */
function curveOf({ levels }, axis) {
  const curve = new Array(FLIGHT_STEPS).fill(0);
  const stepAt = (at) => Math.min(FLIGHT_STEPS - 1, Math.floor(axis.x(at) * FLIGHT_STEPS));
  const [begin, end] = [axis.segments[0]?.from, axis.segments.at(-1)?.to];
  levels.forEach(([at, level], i) => {
    const until = levels[i + 1]?.[0] ?? at;
    if (level === 0 || until < begin || at > end) return;
    for (let step = stepAt(at); step <= stepAt(until); step += 1) curve[step] = Math.max(curve[step], level);
  });
  return curve;
}

function summaryOf(store, lanes, now) {
  const hosts = new Set(lanes.map((lane) => lane.host)).size;
  const [open, used] = [0, 1].map((i) => sum(lanes.map((lane) => timesOfLane(lane, now)[i])));
  const homeless = store.shown().filter((row) => row.connection_id === null && row.status !== null).length;
  return joined(
    `${plural(lanes.length, "connection")} to ${plural(hosts, "server")}`,
    open > 0 && `idle ${percent(Math.max(0, 1 - used / open))} of the time open`,
    homeless > 0 && `${plural(homeless, "request")} without a connection`,
  );
}

/** Seconds that a connection was open, and in use. */
function timesOfLane({ connection, all }, now) {
  const opened = Math.min(connection.opened_at, ...all.slice(0, 1).map(usedFrom));
  const used = sum(all.map((row) => Math.max(0, endOf(row, now) - usedFrom(row))));
  return [Math.max(used, (connection.closed_at ?? now) - opened), used];
}

/** Bars of a lane, {id, from, to, rows}; requests too narrow to be told apart share one. */
function barsOf(lane, axis, width, now) {
  const bars = [];
  for (const row of lane.uses) {
    const [from, to] = [axis.x(usedFrom(row)), axis.x(endOf(row, now))];
    const last = bars.at(-1);
    if (last && (from - last.from) * width < NARROW_PX) {
      last.rows.push(row);
      last.to = Math.max(last.to, to);
    } else bars.push({ id: row.request_id, from, to, rows: [row] });
  }
  return bars;
}

// -- elements -------------------------------------------------------------------------------------------

/** Above the lanes: the curve of requests in flight, and the times. */
function lanesHead() {
  const label = element("div", "nbllm-lanes-label nbllm-lanes-most");
  const track = element("div", "nbllm-lanes-track");
  const times = element("div", "nbllm-lanes-times", null, { "aria-hidden": "true" });
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const curve = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const made = element("div", "nbllm-lanes-head");
  curve.setAttribute("class", "nbllm-lanes-flight");
  curve.setAttribute("preserveAspectRatio", "none");
  curve.setAttribute("role", "img");
  curve.append(shape);
  track.append(times, curve);
  made.append(label, track);

  /** Gives the width of the lanes, in pixels. */
  function draw(axis, flight) {
    const { most } = flight;
    const width = track.clientWidth;
    setText(label, `in flight, at most ${count(most)}`);
    curve.setAttribute("aria-label", label.textContent);
    curve.setAttribute("viewBox", `0 0 ${FLIGHT_STEPS} ${Math.max(1, most)}`);
    const steps = curveOf(flight, axis).map((level, i) => `V${most - level}H${i + 1}`);
    shape.setAttribute("d", `M0 ${most}${steps.join("")}V${most}Z`);
    times.replaceChildren(
      ...axis.ticks(width / TICK_PX).map((tick) => {
        const time = markAt("nbllm-lanes-time", tick.x);
        time.textContent = tick.label;
        return time;
      }),
    );
    return width;
  }

  return { element: made, draw };
}

function markAt(className, x, width) {
  const mark = element("div", className);
  placeAt(mark, x, width);
  return mark;
}

function placeAt(mark, x, width) {
  mark.style.left = `${(100 * x).toFixed(3)}%`;
  if (width !== undefined) mark.style.width = `${(100 * width).toFixed(3)}%`;
}

function newHost() {
  const line = element("div", "nbllm-lanes-host", null, { role: "row" });
  const cell = element("div", "nbllm-lanes-host-name", null, { role: "rowheader" });
  const [name, about] = [element("span"), element("span", "nbllm-lanes-about")];
  cell.append(name, about);
  line.append(cell);
  return { line, name, about };
}

function drawHost({ name, about }, { host, lanes }) {
  const rows = lanes.flatMap((lane) => lane.uses);
  const known = rows.filter((row) => row.connection_reused !== null);
  const reused = known.filter((row) => row.connection_reused).length;
  const share = known.length > 0 && `${percent(reused / known.length)} reused`;
  setText(name, host);
  setText(about, joined(plural(lanes.length, "connection"), plural(rows.length, "request"), share));
}

function newLane() {
  const line = element("div", "nbllm-lane", null, { role: "row" });
  const label = element("div", "nbllm-lanes-label", null, { role: "rowheader", tabindex: "-1" });
  const [name, about] = [element("span", "nbllm-lane-name"), element("span", "nbllm-lanes-about")];
  const track = element("div", "nbllm-lanes-track");
  const life = element("div", "nbllm-lane-whole");
  label.append(name, about);
  track.append(life);
  line.append(label, track);
  return { line, label, name, about, track, life, bars: new Map() };
}

/** A bar's element is kept while it is the same bar: it may be focused, or about to be clicked. */
function drawLane(made, line, { axis, now, width, store, meanings }) {
  const { lane } = line;
  made.line.dataset.connection = lane.key;
  setText(made.name, lane.name);
  setText(made.about, usesOf(lane));
  made.life.replaceChildren(...lifeOf(lane, axis, now));
  meanings.set(made.label, { line, bar: null });
  const before = made.bars;
  made.bars = new Map();
  for (const bar of barsOf(lane, axis, width, now)) {
    const drawn = before.get(bar.id) ?? newBar();
    before.delete(bar.id);
    made.bars.set(bar.id, drawn);
    meanings.set(drawn, { line, bar });
    drawBar(drawn, bar, store, axis);
    if (!drawn.isConnected) made.track.append(drawn);
  }
  for (const gone of before.values()) gone.remove();
}

function newBar() {
  return element("div", "nbllm-lane-bar", null, { role: "gridcell", tabindex: "-1" });
}

function drawBar(drawn, bar, store, axis) {
  const { rows } = bar;
  const [first] = rows;
  const shown = rows.find((row) => row.status === "error") ?? rows.at(-1);
  const single = joined(cellOf(first), modelOf(first), statusOf(first));
  placeAt(drawn, bar.from, bar.to - bar.from);
  drawn.dataset.request = bar.id;
  drawn.dataset.status = shown.status ?? "running";
  drawn.setAttribute("aria-selected", rows.some((row) => row.request_id === store.selected));
  drawn.setAttribute("aria-label", rows.length > 1 ? plural(rows.length, "request") : single);
  drawn.replaceChildren(...(bar.to > bar.from ? handshakePieces(bar, store.phases, axis) : []));
}

/** DNS, TCP and TLS at the beginning of a bar, in their colours. */
function handshakePieces({ from, to, rows: [row] }, phases, axis) {
  if (row.connection_reused !== false) return [];
  const share = (epoch) => (axis.x(epoch) - from) / (to - from);
  let at = usedFrom(row);
  const pieces = [];
  for (const [name, ms] of phasesOf(row).filter(([phase]) => ["dns", "connect", "tls"].includes(phase))) {
    const piece = markAt("nbllm-lane-handshake", share(at), share(at + ms / 1000) - share(at));
    piece.dataset.phase = name;
    piece.style.backgroundColor = phases[name]?.colour ?? "";
    pieces.push(piece);
    at += ms / 1000;
  }
  return pieces;
}

function usesOf({ uses, all }) {
  const reused = uses.filter((row) => row.connection_reused).length;
  const some = uses.length < all.length ? `${count(uses.length)} of ` : "";
  return all.length ? joined(`${some}${count(all.length)} req`, reused > 0 && `${count(reused)} reused`) : "unused";
}

/** The line of a connection's life; a stroke marks where it was closed, and why where there is room. */
function lifeOf({ connection, all }, axis, now) {
  const begin = axis.x(Math.min(connection.opened_at, ...all.slice(0, 1).map(usedFrom)));
  const end = axis.x(connection.closed_at ?? now);
  const life = markAt("nbllm-lane-life", begin, end - begin);
  if (connection.closed_at === null) return [life];
  const stroke = markAt("nbllm-lane-end", end);
  if (end > 0.8 || !connection.close_reason) return [life, stroke];
  const reason = markAt("nbllm-lane-reason", end);
  reason.textContent = connection.close_reason;
  return [life, stroke, reason];
}

/** What the tooltip tells of a lane's label, or of one of its bars. */
function toldOfLane({ line: { lane }, bar }, store) {
  const { connection, all } = lane;
  const reason = all[0]?.connection_reused === false ? all[0].connection_reason : null;
  const life = [
    ["Opened", joined(clock(connection.opened_at), reason)],
    ["Closed", closedOf(connection)],
  ];
  if (bar === null) return toldOfConnection(lane, life, store.now());
  return bar.rows.length > 1 ? toldOfSome(bar.rows, life) : toldOfOne(bar.rows[0], lane, life, store.now());
}

function toldOfConnection(lane, life, now) {
  const { connection } = lane;
  const [open, used] = timesOfLane(lane, now);
  return toldPairs(lane.key, [
    ["Server", serverOf(lane.host, connection)],
    ["TLS", connection.tls_version ?? "none"],
    ...life,
    ["Requests", usesOf(lane)],
    ["Open for", seconds(1000 * open)],
    ["Idle", open > 0 ? percent(1 - used / open) : UNKNOWN],
  ]);
}

function toldOfSome(rows, life) {
  const errors = rows.filter((row) => row.status === "error").length;
  return toldPairs(`${count(rows.length)} requests, close together`, [
    ["Started", `${clock(rows[0].started_at)} – ${clock(rows.at(-1).started_at)}`],
    ["Errors", count(errors)],
    ...life,
  ]);
}

function toldOfOne(row, lane, life, now) {
  const took = seconds(row.duration_ms ?? 1000 * (now - row.started_at));
  const handshake = handshakeOf(row);
  return toldPairs(joined(cellOf(row), modelOf(row)), [
    ["Status", statusOf(row)],
    ["Started", clock(row.started_at)],
    ["Took", joined(took, row.ttft_ms !== null && `first content ${seconds(row.ttft_ms)}`)],
    ["Connection", joined(lane.name, usedOf(row))],
    ["Handshake", handshake > 0 ? seconds(handshake) : undefined],
    ["Idle before", row.connection_reused ? seconds(row.connection_idle_ms) : undefined],
    ...life,
  ]);
}

/** A heading, and pairs of name and value; undefined does not apply. */
function toldPairs(heading, pairs) {
  const table = element("table", "nbllm-tip-table");
  for (const [name, value] of pairs) {
    if (value === undefined) continue;
    const line = element("tr");
    line.append(element("th", "", name, { scope: "row" }), element("td", "", value));
    table.append(line);
  }
  return [element("div", "nbllm-tip-heading", heading), table];
}
