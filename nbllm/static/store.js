/*
 * What the panel knows: the rows that the kernel sent, what of them is to be seen, and numbers over them.
 *
 * The definitions of numbers and phases are those of nbllm/overview.py; a test compares them.
 */

const MOST_REQUESTS = 10_000;
const MOST_DETAILS = 50; // kept; each may be large
const THIS_KERNEL = "this kernel"; // what nbllm/selection.py says where nothing is selected

// -- one request ----------------------------------------------------------------------------------------

/** [name, milliseconds] of the phases that a request had, in order, from `startOf` on. */
function phasesOf(row) {
  const names = ["blocked_ms", "dns_ms", "connect_ms", "send_ms", "wait_ms"];
  const before = sum(names.map((name) => row[name] ?? 0));
  const received = row.receive_ms ?? 0;
  const first = row.ttft_ms === null ? 0 : Math.min(Math.max(0, row.ttft_ms - before), received);
  const took = {
    queued: row.queued_ms,
    blocked: row.blocked_ms,
    dns: row.dns_ms,
    connect: (row.connect_ms ?? 0) - (row.ssl_ms ?? 0),
    tls: row.ssl_ms,
    send: row.send_ms,
    wait: row.wait_ms,
    first_token: first,
    stream: received - first,
  };
  return Object.entries(took).filter(([, ms]) => ms > 0);
}

/** When a request began to be of interest: before it was sent, it may have been queued. Epoch seconds. */
function startOf(row) {
  return row.started_at - (row.queued_ms ?? 0) / 1000;
}

/** When it ended, as `span` in nbllm/time_axis.py: now while it runs; where nobody saw it end, with its phases. */
function endOf(row, now) {
  if (row.status === null) return Math.max(now, row.started_at);
  if (row.duration_ms !== null) return row.started_at + Math.max(0, row.duration_ms) / 1000;
  const known = startOf(row) + sum(phasesOf(row).map(([, ms]) => ms)) / 1000;
  return Math.max(row.started_at, row.ended_at ?? 0, known);
}

/** The model as one types it; what was asked for, where no model is known. */
function modelOf(row) {
  if (row.request_model === null) return row.operation || `foreign ${row.server_address ?? ""}`.trim();
  return row.provider === "demo" ? `demo/${row.request_model}` : row.request_model;
}

function cellOf(row) {
  return row.execution_count === null ? row.cell_id || UNKNOWN : `[${row.execution_count}]`;
}

/** In words, as `status` in nbllm/report_parts.py: "running", "ok", "429 RateLimitError", "cancelled". */
function statusOf(row) {
  const isRefused = row.status === "error" && row.http_status >= 400;
  const word = isRefused ? String(row.http_status) : row.status ?? "running";
  return row.error_type ? `${word} ${row.error_type}`.replace(/^error /, "") : word;
}

/** How a request came by its connection. */
function usedOf(row) {
  if (row.connection_reused === null) return null;
  if (row.connection_reused) return "reused";
  const idle = row.connection_idle_ms;
  return joined("new", row.connection_reason, idle !== null && `the one before was idle for ${seconds(idle)}`);
}

function closedOf(connection) {
  const { closed_at, close_reason } = connection;
  return closed_at === null ? "still open" : joined(clock(closed_at), close_reason);
}

/** A server's name and port, and its address where that is another. */
function serverOf(host, connection) {
  return joined(host, connection?.peer !== host && connection?.peer);
}

// -- several --------------------------------------------------------------------------------------------

/** Interpolated between two values, as numpy's default; null of none. */
function percentileOf(values, share) {
  if (values.length === 0) return null;
  const ordered = Float64Array.from(values).sort();
  const place = ((ordered.length - 1) * share) / 100;
  const below = Math.floor(place);
  const above = Math.min(below + 1, ordered.length - 1);
  return ordered[below] + (ordered[above] - ordered[below]) * (place - below);
}

/** What is known of a column. */
function knownOf(rows, name) {
  const known = [];
  for (const row of rows) if (row[name] !== null) known.push(row[name]);
  return known;
}

/** Sum of what is known of a column, null where nothing is. */
function totalOf(rows, name) {
  const known = knownOf(rows, name);
  return known.length ? sum(known) : null;
}

function countOf(rows, isMeant) {
  let n = 0;
  for (const row of rows) if (isMeant(row)) n += 1;
  return n;
}

/** The numbers of `Totals` in nbllm/overview.py. */
function totalsOf(rows) {
  const having = (status) => countOf(rows, (row) => row.status === status);
  const durations = knownOf(rows, "duration_ms");
  const reused = countOf(rows, (row) => row.connection_reused === true);
  const opened = countOf(rows, (row) => row.connection_reused === false);
  return {
    requests: rows.length,
    errors: having("error"),
    cancelled: having("cancelled"),
    incomplete: having("incomplete"),
    running: having(null),
    input_tokens: totalOf(rows, "input_tokens"),
    output_tokens: totalOf(rows, "output_tokens"),
    cost_usd: totalOf(rows, "cost_usd"),
    unpriced: countOf(rows, (row) => row.input_tokens !== null && row.cost_usd === null),
    duration_ms: totalOf(rows, "duration_ms"),
    duration_p50_ms: percentileOf(durations, 50),
    duration_p95_ms: percentileOf(durations, 95),
    ttft_p50_ms: percentileOf(knownOf(rows, "ttft_ms"), 50),
    connections_opened: opened,
    reused,
    reuse_ratio: opened + reused ? reused / (opened + reused) : null,
    handshakes_saved: reused,
    handshakes_saved_ms: handshakesSaved(rows),
  };
}

/** Milliseconds that the handshakes of reused connections would have taken: each the median of its server's. */
function handshakesSaved(rows) {
  const servers = new Map();
  for (const row of rows) {
    const name = `${row.server_address} ${row.server_port}`;
    if (!servers.has(name)) servers.set(name, { took: [], spared: 0 });
    const server = servers.get(name);
    if (row.connection_reused) server.spared += 1;
    else if (row.connection_reused === false && row.connect_ms !== null) {
      server.took.push((row.dns_ms ?? 0) + row.connect_ms);
    }
  }
  const known = [...servers.values()].filter(({ took, spared }) => spared && took.length);
  return known.length ? sum(known.map(({ took, spared }) => percentileOf(took, 50) * spared)) : null;
}

/** The requests of one session of one owner. */
class Group {
  #totals = null;
  #spans = null;

  constructor(key, { session_id: name, owner }) {
    Object.assign(this, { key, name, owner, rows: [] });
  }

  hasSame(rows) {
    return rows.length === this.rows.length && rows.every((row, i) => row === this.rows[i]);
  }

  get totals() {
    this.#totals ??= totalsOf(this.rows);
    return this.#totals;
  }

  /** When something of it was in flight: [from, to] in epoch seconds. */
  spans(now) {
    if (this.#spans && !this.totals.running) return this.#spans;
    this.#spans = merged(this.rows.map((row) => [startOf(row), endOf(row, now)]), 0);
    return this.#spans;
  }
}

/** Sessions by their first request. */
function groupsOf(rows) {
  const groups = [];
  const sessions = new Map(); // session_id -> owner -> group
  for (const row of rows) {
    let owners = sessions.get(row.session_id);
    if (!owners) sessions.set(row.session_id, (owners = new Map()));
    let group = owners.get(row.owner);
    if (!group) {
      group = new Group(JSON.stringify([row.session_id, row.owner]), row);
      owners.set(row.owner, group);
      groups.push(group);
    }
    group.rows.push(row);
  }
  return groups;
}

// -- the store ------------------------------------------------------------------------------------------

const NO_FILTER = { text: "", model: "", status: "", cell: "", session: "" };

/** One per widget; its views share it. */
class Store {
  requests = new Map(); // request_id -> row, oldest first
  connections = new Map(); // connection_id -> row
  phases = {}; // name -> {label, colour, meaning}
  leftOut = 0; // older requests that are meant too, and not here
  isLive = false; // the kernel has sent rows
  isClosed = false; // it will send no more
  isLost = false; // it is gone, or was restarted
  filter = NO_FILTER;
  selected = null; // request_id
  folded = new Set(); // keys of sessions
  details = new Map(); // request_id -> detail, or {problem}
  found = { text: "", ids: new Set() }; // what the kernel found in messages and answers
  #send;
  #asked = new Set(); // of which details are on their way
  #outdated = new Set(); // of which details were told before the request, or its call, went on
  #ahead = 0; // seconds that the kernel's clock is ahead of the browser's
  #endedAt = null; // when the kernel's last word was heard; epoch seconds
  #shown = null;
  #groups = null;
  #lastGroups = new Map(); // by key
  #haystacks = new WeakMap(); // row -> its text to search, lower case
  #subscribers = new Set();
  #changes = new Set(); // to be told in the next frame
  #frame = 0;

  /** `send` passes a message to the kernel; `phases` and `scope` as the widget's traits. */
  constructor(send, phases, scope) {
    this.#send = send;
    this.scope = scope || THIS_KERNEL;
    for (const [name, [label, colour, meaning]] of Object.entries(phases ?? {})) {
      this.phases[name] = { label, colour, meaning };
    }
  }

  /** Epoch seconds by the kernel's clock, which stands once nothing more will come. */
  now() {
    return this.#endedAt ?? Date.now() / 1000 + this.#ahead;
  }

  /** Nothing more will come. */
  get hasEnded() {
    return this.isClosed || this.isLost;
  }

  /** Ask the kernel for everything. */
  greet() {
    this.#tell({ kind: "hello" });
  }

  /** The kernel is gone, for all that is known; if it is not, it answers a greeting. */
  lose() {
    this.#end("isLost");
    this.greet();
  }

  #tell(message) {
    try {
      this.#send(message);
    } catch {
      this.#end("isLost"); // Jupyter's comms throw once their kernel is gone
    }
  }

  #end(how) {
    if (this[how]) return;
    this.#endedAt = this.now();
    this[how] = true;
    this.#changed("rows");
  }

  /** Take a message of the kernel. */
  receive(message) {
    const handlers = {
      rows: () => this.#takeRows(message),
      detail: () => this.#takeDetail(message),
      found: () => this.#takeFound(message),
      closed: () => this.#end("isClosed"),
    };
    handlers[message?.kind]?.();
  }

  #takeRows(message) {
    const before = this.requests;
    if (this.isLost) this.#asked.clear(); // what was asked in between, nobody has heard
    this.isLost = false;
    this.#endedAt = null;
    this.requests = new Map(message.reset ? [] : before);
    if (message.reset) this.connections = new Map();
    const ahead = message.now - Date.now() / 1000;
    this.#ahead = this.isLive && !message.reset ? Math.max(this.#ahead, ahead) : ahead; // the least delayed is right
    this.isLive = true;
    put(this.requests, "request_id", message.columns, message.requests);
    put(this.connections, "connection_id", message.connection_columns, message.connections);
    this.#outdateDetails(before);
    this.#order(message.reset ? message.left_out : this.leftOut);
    this.#changed("rows");
  }

  /** Oldest first (a request may be told of when it ends), and no more than fit. */
  #order(leftOut) {
    const ordered = [...this.requests.values()];
    const isBefore = (one, other) => one.started_at <= other.started_at;
    if (!ordered.every((row, i) => i === 0 || isBefore(ordered[i - 1], row))) {
      ordered.sort((one, other) => one.started_at - other.started_at);
      this.requests = new Map(ordered.map((row) => [row.request_id, row]));
    }
    const excess = Math.max(0, ordered.length - MOST_REQUESTS);
    for (const row of ordered.slice(0, excess)) this.requests.delete(row.request_id);
    this.leftOut = leftOut + excess;
  }

  /** Where an attempt of a call came or changed, the details of all its attempts are asked for anew. */
  #outdateDetails(before) {
    const calls = new Set();
    for (const row of this.requests.values()) {
      const old = before.get(row.request_id);
      if (old !== row && old?.status !== row.status) calls.add(row.call_id);
    }
    for (const id of [...this.details.keys(), ...this.#asked]) {
      if (calls.has(this.requests.get(id)?.call_id)) this.#outdated.add(id);
    }
  }

  #takeDetail({ request_id, detail, problem }) {
    this.#asked.delete(request_id);
    this.details.delete(request_id); // the newest come last
    this.details.set(request_id, detail ?? { problem });
    const oldest = this.details.keys().next().value;
    if (this.details.size > MOST_DETAILS) this.details.delete(oldest);
    this.#changed("details");
  }

  #takeFound({ text, request_ids }) {
    if (text !== this.filter.text) return; // another one was typed since
    this.found = { text, ids: new Set(request_ids) };
    this.#changed("filter");
  }

  /** Rows that pass the filter, oldest first. */
  shown() {
    this.#shown ??= [...this.requests.values()].filter((row) => this.#passes(row));
    return this.#shown;
  }

  /** Their sessions; those in which nothing has changed are the same objects, with what they have reckoned. */
  groups() {
    if (this.#groups) return this.#groups;
    this.#groups = groupsOf(this.shown()).map((group) => {
      const before = this.#lastGroups.get(group.key);
      return before?.hasSame(group.rows) ? before : group;
    });
    this.#lastGroups = new Map(this.#groups.map((group) => [group.key, group]));
    return this.#groups;
  }

  get isFiltered() {
    return Object.values(this.filter).some((value) => value !== "");
  }

  /** Why there is nothing of a kind to show. */
  whyEmpty(noun) {
    if (this.isFiltered) return `No ${noun} passes the filter.`;
    return this.scope === THIS_KERNEL ? `No ${noun}s yet.` : `No ${noun} passes: ${this.scope}.`;
  }

  #passes(row) {
    const { text, model, status, cell, session } = this.filter;
    return (
      (!model || modelOf(row) === model) &&
      (!status || (row.status ?? "running") === status) &&
      (!cell || cellOf(row) === cell) &&
      (!session || row.session_id === session) &&
      (!text || this.#haystack(row).includes(text.toLowerCase()) || this.#isFound(row))
    );
  }

  #isFound(row) {
    return this.found.text === this.filter.text && this.found.ids.has(row.request_id);
  }

  #haystack(row) {
    let text = this.#haystacks.get(row);
    if (text === undefined) {
      const parts = [row.session_id, modelOf(row), cellOf(row), row.prompt, statusOf(row), row.error_message];
      text = [...parts, row.request_id, row.connection_id].filter(Boolean).join("\n").toLowerCase();
      this.#haystacks.set(row, text);
    }
    return text;
  }

  /** Change some of the filter's parts. */
  setFilter(parts) {
    this.filter = { ...this.filter, ...parts };
    this.#changed("filter");
  }

  clearFilter() {
    this.setFilter(NO_FILTER);
  }

  /** Ask the kernel for the filter's text in messages and answers. */
  search() {
    if (this.filter.text && this.filter.text !== this.found.text) {
      this.#tell({ kind: "search", text: this.filter.text });
    }
  }

  refresh() {
    this.#tell({ kind: "refresh" });
  }

  /** Fold a session, by the key of its group, or unfold it. */
  fold(key, isFolded) {
    if (isFolded) this.folded.add(key);
    else this.folded.delete(key);
    this.#changed("folded");
  }

  /** Fold all sessions that are shown, or where all are folded, unfold them. */
  foldAll() {
    const isFolded = !this.isAllFolded;
    for (const { key } of this.groups()) this.fold(key, isFolded);
  }

  get isAllFolded() {
    return this.groups().length > 0 && this.groups().every(({ key }) => this.folded.has(key));
  }

  select(id) {
    if (id === this.selected) return;
    this.selected = id;
    this.#changed("selected");
  }

  /** Ask for the details of a request, unless they are on their way, or here as they are now. */
  askDetail(id) {
    const isKnown = this.details.has(id) && !this.#outdated.has(id);
    if (isKnown || this.#asked.has(id)) return;
    this.#asked.add(id);
    this.#outdated.delete(id);
    this.#tell({ kind: "detail", request_id: id });
  }

  /** Hear of changes, at most once per frame and kind: "rows", "filter", "folded", "selected", "details". */
  subscribe(hear) {
    this.#subscribers.add(hear);
    return () => this.#subscribers.delete(hear);
  }

  #changed(what) {
    if (what === "rows" || what === "filter") this.#shown = this.#groups = null;
    this.#changes.add(what);
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      const changes = [...this.#changes];
      this.#changes.clear();
      for (const hear of this.#subscribers) changes.forEach((change) => hear(change));
    });
  }
}

/** Put lists of values, named by columns, into a map. */
function put(map, key, columns, rows) {
  for (const values of rows) {
    const row = {};
    for (let i = 0; i < columns.length; i += 1) row[columns[i]] = values[i];
    map.set(row[key], row);
  }
}
