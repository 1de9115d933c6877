/*
 * The strip of numbers over what the filter leaves, and the bar with tabs and filters below it.
 */

const SEARCH_AFTER_MS = 300; // of silence at the keyboard
const PATIENT_FOR_MS = 1000; // before a person is told that an answer waits for the running cell

/**
 * The numbers, each a figure and a note below it: [label, figure, note]. Both are lists of texts and of
 * [name of Totals, format].
 */
const FIGURES = [
  ["Requests", [["requests", count]], [["running", noted("running")]]],
  ["Errors", [["errors", count]], [["cancelled", noted("cancelled")], ["incomplete", noted("incomplete")]]],
  ["Tokens in → out", [["input_tokens", compact], " → ", ["output_tokens", compact]], []],
  ["Cost", [["cost_usd", money]], [["unpriced", noted("unpriced")]]],
  ["Time", [["duration_p50_ms", seconds], " / ", ["duration_p95_ms", seconds]], ["p50 / p95"]],
  ["First token", [["ttft_p50_ms", seconds]], ["p50"]],
  ["Connections", [["connections_opened", count], " opened"], [["reuse_ratio", known((ratio) => `${percent(ratio)} reused`)]]],
  ["Handshakes", [["handshakes_saved", count], " saved"], [["handshakes_saved_ms", known((ms) => `≈ ${seconds(ms)} saved`)]]],
];

/** "3 running"; nothing of none. */
function noted(what) {
  return (n) => (n ? `${count(n)} ${what}` : "");
}

/** The same format; nothing of what is unknown. */
function known(format) {
  return (value) => (value === null ? "" : format(value));
}

/** The headline: every number has the name that it has in Totals, and its raw value, for whoever checks it. */
function headlineView(store) {
  const strip = element("div", "nbllm-headline", null, { role: "group", "aria-label": "Numbers of the requests shown" });
  const numbers = new Map(); // name -> {target, format}
  const number = (name, format) => {
    const target = element("span", "nbllm-number", null, { "data-name": name });
    numbers.set(name, { target, format });
    return target;
  };
  const made = (part) => (typeof part === "string" ? element("span", "nbllm-unit", part) : number(...part));
  for (const [label, figure, note] of FIGURES) {
    const tile = element("div", "nbllm-tile");
    const [above, below] = [element("div", "nbllm-figure"), element("div", "nbllm-note")];
    above.append(...figure.map(made));
    below.append(...note.map(made));
    tile.append(element("div", "nbllm-label", label), above, below);
    strip.append(tile);
  }
  const errors = numbers.get("errors").target;
  errors.setAttribute("aria-live", "polite");
  const share = element("span", "nbllm-unit");
  numbers.get("requests").target.after(share);

  function update() {
    const totals = totalsOf(store.shown());
    for (const [name, { target, format }] of numbers) {
      target.dataset.value = totals[name] ?? "";
      setText(target, format(totals[name]));
    }
    setText(share, store.isFiltered ? ` of ${count(store.requests.size)}` : "");
    errors.classList.toggle("nbllm-bad", totals.errors > 0);
  }

  return { element: strip, update, dispose() {} };
}

/** The bar: tabs ({name: title}), of which a person chooses one, filters, and what acts on the table. */
function toolbarView(store, tabs, choose, isWide) {
  const bar = element("div", "nbllm-toolbar");
  const filters = element("div", "nbllm-filters", null, { role: "search", "aria-label": "Filter requests" });
  const text = searchBox(store);
  const selects = ["model", "status", "cell"].map((name) => filterSelect(store, name));
  const clear = button("Clear", () => store.clearFilter());
  filters.append(text.element, ...selects.map((select) => select.element), clear);
  const fold = button("Fold all", () => store.foldAll());
  const list = tabList(tabs, choose);
  bar.append(list.element, filters, fold);
  if (isWide) bar.append(button("Refresh", () => store.refresh()));

  function update() {
    text.update();
    selects.forEach((select) => select.update());
    clear.hidden = !store.isFiltered;
    setText(fold, store.isAllFolded ? "Unfold all" : "Fold all");
  }

  function show(tab) {
    list.show(tab);
    fold.hidden = tab !== "requests";
  }

  return { element: bar, search: text.input, tabId: list.id, update, show, dispose: text.dispose };
}

/** Tabs, of which one can be reached by Tab and the others from it by arrow keys. */
function tabList(tabs, choose) {
  const list = element("div", "nbllm-tabs", null, { role: "tablist", "aria-label": "Views" });
  const id = newId("tab");
  const names = Object.keys(tabs);
  const made = names.map((name) => {
    const tab = button(tabs[name], () => choose(name));
    tab.className = "nbllm-tab";
    tab.id = `${id}-${name}`;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", `${id}-${name}-panel`);
    return tab;
  });
  list.append(...made);
  list.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    const next = (made.indexOf(event.target) + by + made.length) % made.length;
    choose(names[next]);
    made[next].focus();
  });

  function show(name) {
    made.forEach((tab, i) => {
      tab.setAttribute("aria-selected", names[i] === name);
      tab.tabIndex = names[i] === name ? 0 : -1;
    });
  }

  return { element: list, id, show };
}

/** The filter box. What was said in messages and answers only the kernel knows: it is asked after a pause. */
function searchBox(store) {
  const box = element("span", "nbllm-search");
  const input = element("input", "nbllm-input", null, {
    type: "search",
    placeholder: "Filter  ( / )",
    "aria-label": "Filter by session, model, cell, text, error, connection or request id",
    spellcheck: "false",
  });
  const note = element("span", "nbllm-search-note", null, { role: "status" });
  box.append(input, note);
  let timers = [];
  const dispose = () => timers.forEach(clearTimeout);

  input.addEventListener("input", () => {
    dispose();
    store.setFilter({ text: input.value });
    if (!input.value) return;
    const asked = setTimeout(() => store.search(), SEARCH_AFTER_MS);
    timers = [asked, setTimeout(update, SEARCH_AFTER_MS + PATIENT_FOR_MS, true)];
  });

  function update(isLate = false) {
    if (input.value !== store.filter.text) input.value = store.filter.text;
    const waits = store.filter.text !== "" && store.found.text !== store.filter.text && !store.hasEnded;
    if (!waits) setText(note, "");
    else if (isLate) setText(note, "answers: waiting for the running cell…");
  }

  return { element: box, input, update, dispose };
}

const MOST_CHOICES = 200; // the newest; others are found by typing
const CHOICES = {
  model: (rows) => distinct(rows.map(modelOf)).slice(-MOST_CHOICES).sort(),
  status: () => ["ok", "error", "cancelled", "incomplete", "running"],
  cell: (rows) => distinct(rows.map(cellOf)).slice(-MOST_CHOICES),
};

function distinct(values) {
  return [...new Set(values)];
}

/** A choice of one part of the filter, among what is there. */
function filterSelect(store, name) {
  const select = element("select", "nbllm-input nbllm-select", null, { "aria-label": `Filter by ${name}` });
  let values = null;
  select.addEventListener("change", () => store.setFilter({ [name]: select.value }));

  function update() {
    const found = CHOICES[name]([...store.requests.values()]);
    const chosen = store.filter[name];
    if (chosen && !found.includes(chosen)) found.push(chosen);
    if (values?.join("\n") !== found.join("\n")) {
      values = found;
      const options = found.map((value) => element("option", "", value, { value }));
      select.replaceChildren(element("option", "", name[0].toUpperCase() + name.slice(1), { value: "" }), ...options);
    }
    select.value = chosen;
    select.classList.toggle("nbllm-chosen", chosen !== "");
  }

  return { element: select, update };
}
