/*
 * The detail drawer: everything about one request, in sections that fold.
 *
 * What the row tells is there at once; messages, parameters, headers, attempts and code come from the kernel,
 * which may have to wait for a running cell. All text is shown as it is: nothing in it is markup here.
 */

const FOLDED_LINES = 30;
const FOLDED_LETTERS = 4000;
const RECENT_MESSAGES = 8; // of a long conversation; the earlier ones come on request
const PATIENCE_MS = 1000; // before the drawer says what it waits for
const GROWS_MS = 250; // how often it is looked at again while the request runs, or its details are waited for
const COPIED_MS = 1500;

const COST_SOURCES = {
  provider: "as the provider says",
  user: "by your own price",
  "genai-prices": "by the price table (genai-prices)",
};

/**
 * The drawer for the store's selected request; hidden where none is selected.
 * `actions`: close(), goToCell(row).
 */
function drawerView(store, actions) {
  const view = element("aside", "nbllm-drawer", null, {
    role: "complementary",
    "aria-label": "Request details",
  });
  const head = drawerHead(store, actions);
  const body = element("div", "nbllm-drawer-body");
  const sections = drawerSections();
  body.append(...sections.map((section) => section.element));
  view.append(head.element, body);
  view.hidden = true;
  let current = null;
  let selectedAt = 0;
  let timer = null;
  let found = null; // the store's details of it
  let told = null; // these, or older ones that told the same

  function update() {
    if (store.selected !== current) {
      current = store.selected;
      found = told = null;
      selectedAt = performance.now();
      body.scrollTop = 0;
    }
    clearTimeout(timer);
    const row = current === null ? undefined : store.requests.get(current);
    view.hidden = row === undefined;
    if (row === undefined) return;
    store.askDetail(current);
    take(store.details.get(current));
    const known = {
      store,
      detail: told?.problem === undefined ? told : null,
      problem: told?.problem ?? null,
      isLate: told === null && performance.now() - selectedAt >= PATIENCE_MS,
      connection: store.connections.get(row.connection_id) ?? told?.connection ?? null,
    };
    head.update(row, known);
    for (const section of sections) section.update(row, known);
    const isPatient = told === null && !known.isLate;
    if (!store.hasEnded && (row.status === null || isPatient)) timer = setTimeout(update, GROWS_MS);
  }

  /** The same again leaves what is shown as it is, with what one has unfolded and selected in it. */
  function take(newer) {
    if (newer === undefined || newer === found) return;
    found = newer;
    if (JSON.stringify(newer) !== JSON.stringify(told)) told = newer;
  }

  return { element: view, update, dispose: () => clearTimeout(timer) };
}

/** What the drawer is about, in a few numbers, and its buttons. */
function drawerHead(store, actions) {
  const model = element("span", "nbllm-drawer-model");
  const status = element("span", "nbllm-drawer-status");
  const title = element("h3", "nbllm-drawer-title");
  title.append(model, status);
  const previous = button("‹", () => step(-1));
  const next = button("›", () => step(1));
  const close = button("×", () => actions.close());
  previous.setAttribute("aria-label", "Previous request");
  next.setAttribute("aria-label", "Next request");
  close.setAttribute("aria-label", "Close details");
  const moves = element("div", "nbllm-drawer-moves");
  moves.append(previous, next, close);
  const about = element("div", "nbllm-drawer-about");
  const numbers = element("div", "nbllm-drawer-numbers");
  const goTo = button("Go to cell", () => actions.goToCell(store.requests.get(store.selected)));
  const code = copyButton("Copy as nbllm code");
  const curl = copyButton("Copy as curl");
  const tools = element("div", "nbllm-drawer-tools");
  tools.append(goTo, ...code.elements, ...curl.elements);
  const head = element("header", "nbllm-drawer-head");
  head.append(title, moves, about, numbers, tools);

  function step(by) {
    const rows = store.shown();
    const at = rows.findIndex((row) => row.request_id === store.selected);
    const row = at === -1 ? rows.at(-1) : rows[at + by];
    if (row !== undefined) store.select(row.request_id);
  }

  function update(row, { detail }) {
    const rows = store.shown();
    model.textContent = modelOf(row);
    status.textContent = statusOf(row);
    status.dataset.status = row.status ?? "running";
    about.textContent = joined(
      cellOf(row),
      row.session_id,
      clock(row.started_at),
      row.attempt > 1 && `attempt ${row.attempt}`,
    );
    numbers.textContent = joined(
      row.duration_ms !== null && seconds(row.duration_ms),
      row.ttft_ms !== null && `first ${seconds(row.ttft_ms)}`,
      (row.input_tokens ?? row.output_tokens) !== null && `${tokens(row.input_tokens, row.output_tokens)} tok`,
      row.cost_usd !== null && money(row.cost_usd),
    );
    previous.disabled = rows.length === 0 || rows[0].request_id === row.request_id;
    next.disabled = rows.length === 0 || rows.at(-1).request_id === row.request_id;
    goTo.disabled = row.execution_count === null && row.cell_id === null;
    code.update(detail?.code);
    curl.update(detail?.curl);
  }

  return { element: head, update };
}

/**
 * The sections in their order. Each is filled anew only when what it tells has changed (`basis`), so that
 * a text stays selected while rows come; `fill` gives its nodes, or null where there is nothing to tell.
 */
function drawerSections() {
  const ofRow = (row, known) => [JSON.stringify([row, known.connection])];
  const ofTime = (row, known) => [JSON.stringify(row), row.status === null ? known.store.now() : null];
  const ofDetail = (row, { detail, problem, isLate, store }) => {
    return [detail, problem, isLate, store.hasEnded, row.status, row.request_id];
  };
  return [
    drawerSection("Error", true, ofRow, errorOf),
    drawerSection("Messages and answer", true, ofDetail, conversationOf),
    drawerSection("Timing", true, ofTime, timingOf),
    drawerSection("Usage and cost", true, ofRow, usageOf),
    drawerSection("Connection", true, ofRow, connectionOf),
    drawerSection("Attempts of the call", true, ofDetail, attemptsOf),
    drawerSection("Cell", true, ofRow, cellFactsOf),
    drawerSection("Parameters", false, ofDetail, (row, known) => settingsOf(known, "params")),
    drawerSection("Headers kept", false, ofDetail, (row, known) => settingsOf(known, "headers")),
  ];
}

function drawerSection(title, isOpen, basis, fill) {
  const content = element("div", "nbllm-drawer-content");
  const section = element("details", "nbllm-drawer-section");
  section.append(element("summary", "nbllm-drawer-summary", title), content);
  section.open = isOpen;
  let last = [];

  function update(row, known) {
    const now = basis(row, known);
    if (now.length === last.length && now.every((part, index) => part === last[index])) return;
    last = now;
    const nodes = fill(row, known);
    section.hidden = nodes === null;
    content.replaceChildren(...(nodes ?? []));
  }

  return { element: section, update };
}

// -- sections -------------------------------------------------------------------------------------------

function errorOf(row) {
  if (row.error_type === null && row.error_message === null) return null;
  const nodes = [facts([["Type", row.error_type], ["HTTP status", row.http_status]])];
  if (row.error_message) nodes.push(preformatted(row.error_message, "nbllm-drawer-problem"));
  return nodes;
}

function conversationOf(row, known) {
  const { detail } = known;
  if (detail === null) return [waitingFor(known)];
  if (!detail.content_kept) return [note("The content was not kept.")];
  const messages = (detail.messages ?? []).map(messageOf);
  const nodes = messages.slice(-RECENT_MESSAGES);
  const earlier = messages.slice(0, -RECENT_MESSAGES);
  if (earlier.length) {
    const more = button(`Show ${plural(earlier.length, "earlier message")}`, () => more.replaceWith(...earlier));
    more.classList.add("nbllm-drawer-more");
    nodes.unshift(more);
  }
  if (detail.answer) nodes.push(answerOf(detail.answer));
  else nodes.push(note(row.status === null ? "No answer yet." : "No answer."));
  return nodes;
}

function messageOf(message) {
  const node = element("div", "nbllm-message");
  node.dataset.role = message.role;
  node.append(element("div", "nbllm-message-role", message.role));
  if (message.text) node.append(preformatted(message.text, "nbllm-message-text"));
  node.append(...(message.calls ?? []).map(toolCallOf));
  return node;
}

function answerOf(answer) {
  const node = element("div", "nbllm-message nbllm-answer");
  node.dataset.role = "answer";
  node.append(element("div", "nbllm-message-role", "answer"));
  if (answer.reasoning) {
    const reasoning = element("details", "nbllm-reasoning");
    reasoning.append(element("summary", "", "Reasoning"));
    reasoning.append(preformatted(answer.reasoning, "nbllm-message-text"));
    node.append(reasoning);
  }
  if (answer.text) node.append(preformatted(answer.text, "nbllm-message-text"));
  node.append(...(answer.calls ?? []).map(toolCallOf));
  if (node.childElementCount === 1) node.append(note("The answer is empty."));
  return node;
}

function toolCallOf(call) {
  const node = element("div", "nbllm-tool-call");
  node.append(element("div", "nbllm-tool-name", `calls ${call.name}`));
  node.append(preformatted(readable(call.arguments), "nbllm-message-text"));
  return node;
}

/** The waterfall of this request, and its phases to the tenth of a millisecond. */
function timingOf(row, { store }) {
  const queued = row.queued_ms ?? 0;
  const took = queued + (row.duration_ms ?? 1000 * (store.now() - row.started_at));
  const parts = timedParts(row, store.phases, took);
  const nodes = [timingBar(parts), timingTable(row, parts, -queued, took)];
  if (row.ttft_ms !== null) nodes.push(note(`First content after ${exactly(row.ttft_ms)}.`));
  return nodes;
}

/** Phases as [{name, label, colour, meaning, ms}], with what is left beside them where it is worth telling. */
function timedParts(row, phases, took) {
  const parts = phasesOf(row).map(([name, ms]) => ({ label: name, ...phases[name], name, ms }));
  const rest = took - sum(parts.map((part) => part.ms));
  if (rest <= Math.max(1, took / 200)) return parts;
  const running = { name: "running", label: "running", meaning: "its phases are known at its end" };
  const other = { name: "rest", label: "other", meaning: "belongs to no phase" };
  return [...parts, { ...(row.status === null ? running : other), ms: rest }];
}

function timingBar(parts) {
  const label = parts.map((part) => `${part.label} ${exactly(part.ms)}`).join(", ");
  const bar = element("div", "nbllm-big-bar", null, { role: "img", "aria-label": label });
  for (const part of parts) {
    const piece = phaseMark("nbllm-big-piece", part);
    piece.style.flexGrow = part.ms;
    bar.append(piece);
  }
  return bar;
}

/** `from`: milliseconds from the request's start, before which it may have been queued. */
function timingTable(row, parts, from, took) {
  const table = element("table", "nbllm-phases");
  const line = (name, ...texts) => {
    const made = element("tr");
    const classes = ["nbllm-right", "nbllm-right", "nbllm-meaning"];
    made.append(name, ...texts.map((text, i) => element("td", classes[i], text)));
    table.append(made);
    return made;
  };
  const head = element("tr");
  head.append(...["Phase", "from", "took", ""].map((name) => element("th", "", name, { scope: "col" })));
  table.append(head);
  for (const part of parts) {
    const name = element("th", "", null, { scope: "row" });
    name.append(phaseMark("nbllm-swatch", part), element("span", "", part.label));
    line(name, exactly(from), exactly(part.ms), part.meaning).dataset.phase = part.name;
    from += part.ms;
  }
  const times = row.status === null ? "still running" : `${clock(row.started_at)} to ${clock(row.ended_at)}`;
  const total = line(element("th", "", "Total", { scope: "row" }), "", exactly(took), times);
  total.className = "nbllm-phases-total";
  return table;
}

function phaseMark(className, part) {
  const mark = element("span", className);
  mark.dataset.phase = part.name;
  mark.style.background = part.colour ?? ""; // what has none has one in drawer.css
  return mark;
}

function usageOf(row) {
  const part = (value, words) => (value === null ? "" : ` · ${count(value)} ${words}`);
  const tokensOf = (value, some, words) => (value === null ? null : `${count(value)} tok${part(some, words)}`);
  const source = Object.hasOwn(COST_SOURCES, row.cost_source) ? COST_SOURCES[row.cost_source] : row.cost_source;
  const unpriced = row.input_tokens === null ? null : "no price known";
  return [
    facts([
      ["Input", tokensOf(row.input_tokens, row.cache_read_tokens, "cached")],
      ["Output", tokensOf(row.output_tokens, row.reasoning_tokens, "reasoning")],
      ["Cost", row.cost_usd === null ? unpriced : joined(money(row.cost_usd), source)],
      ["Sent", size(row.bytes_sent)],
      ["Received", size(row.bytes_received)],
      ["Chunks", row.chunks === null ? null : count(row.chunks)],
      ["Finish", row.finish_reason],
      ["Answered by", row.response_model === row.request_model ? undefined : row.response_model],
    ]),
  ];
}

function connectionOf(row, { connection }) {
  if (row.connection_id === null) return [note("It has had no connection.")];
  const pairs = [
    ["Connection", row.connection_id],
    ["Use", usedOf(row)],
    ["Idle before", row.connection_reused ? seconds(row.connection_idle_ms) : undefined],
    ["Server", serverOf(`${row.server_address ?? UNKNOWN}:${row.server_port ?? UNKNOWN}`, connection)],
  ];
  if (connection !== null) {
    pairs.push(
      ["TLS", connection.tls_version ?? "none"],
      ["Opened", clock(connection.opened_at)],
      ["Closed", closedOf(connection)],
    );
  }
  return [facts(pairs)];
}

function attemptsOf(row, { store, detail }) {
  if (detail === null || !(detail.attempts?.length > 1)) return null;
  const list = element("ol", "nbllm-attempts");
  for (const attempt of detail.attempts) {
    const told = joined(
      `Attempt ${attempt.attempt}`,
      statusOf(attempt),
      attempt.duration_ms !== null && seconds(attempt.duration_ms),
      clock(attempt.started_at),
    );
    const open = button(told, () => store.select(attempt.request_id));
    open.disabled = !store.requests.has(attempt.request_id);
    if (attempt.request_id === row.request_id) open.setAttribute("aria-current", "true");
    const item = element("li");
    item.append(open);
    if (attempt.error_message) item.append(element("div", "nbllm-attempt-problem", attempt.error_message));
    list.append(item);
  }
  return [list];
}

function cellFactsOf(row) {
  return [
    facts([
      ["Cell", row.execution_count === null ? null : `[${row.execution_count}]`],
      ["Cell id", row.cell_id],
      ["Run", row.run_id],
      ["Notebook", row.notebook ?? undefined],
      ["Session", row.session_id],
      ["Kernel", row.kernel_id],
      ["Request", row.request_id],
    ]),
  ];
}

/** Parameters or headers as pairs of name and value. */
function settingsOf(known, name) {
  if (known.detail === null) return [waitingFor(known)];
  const found = Object.entries(known.detail[name] ?? {});
  if (found.length === 0) return [note("None are known.")];
  return [facts(found.map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)]))];
}

// -- pieces ---------------------------------------------------------------------------------------------

function waitingFor({ problem, isLate, store }) {
  if (store.hasEnded) return note(problem ?? "Not known: this panel is no longer updated.");
  return note(problem ?? (isLate ? "Waiting for the running cell…" : "…"));
}

function note(text) {
  return element("p", "nbllm-drawer-note", text);
}

/** Pairs of name and value; null is unknown, undefined does not apply. */
function facts(pairs) {
  const list = element("dl", "nbllm-facts");
  for (const [name, value] of pairs) {
    if (value === undefined) continue;
    list.append(element("dt", "", name), element("dd", "", String(value ?? UNKNOWN)));
  }
  return list;
}

/** JSON, indented; what is none stays as it is. */
function readable(text) {
  try {
    return JSON.stringify(typeof text === "string" ? JSON.parse(text) : text, null, 1);
  } catch {
    return String(text ?? "");
  }
}

/** Text as it is, wrapped; a long one begins folded. */
function preformatted(text, className) {
  const whole = String(text);
  const lines = whole.split("\n");
  const begin = lines.slice(0, FOLDED_LINES).join("\n").slice(0, FOLDED_LETTERS);
  const pre = element("pre", className, begin);
  if (begin.length === whole.length) return pre;
  const isHigh = lines.length > FOLDED_LINES;
  const length = isHigh ? `${count(lines.length)} lines` : `${count(whole.length)} characters`;
  const more = button(`Show all ${length}`, () => {
    pre.textContent = whole;
    more.remove();
  });
  more.classList.add("nbllm-drawer-more");
  const folded = element("div", "nbllm-folded");
  folded.append(pre, more);
  return folded;
}

/** Put a text into the clipboard; false where the browser does not allow it. */
async function isPutOnClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

/** A button that copies a text; where the browser forbids that, the text is there, selected. */
function copyButton(label) {
  const copy = button(label, act);
  const attributes = { readonly: "", rows: "4", "aria-label": label };
  const manual = element("textarea", "nbllm-drawer-copy", null, attributes);
  let text = null;
  manual.hidden = true;

  async function act() {
    let isCopied = await isPutOnClipboard(text);
    if (!isCopied) {
      manual.value = text;
      manual.hidden = false;
      manual.select();
      isCopied = document.execCommand("copy"); // for pages without HTTPS, which have no clipboard
      manual.hidden = isCopied;
    }
    copy.textContent = isCopied ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (copy.textContent = label), COPIED_MS);
  }

  function update(newer = null) {
    if (newer !== text) manual.hidden = true;
    text = newer;
    copy.disabled = text === null;
  }

  return { elements: [copy, manual], update };
}
