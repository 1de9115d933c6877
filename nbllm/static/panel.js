/*
 * The panel as an anywidget: layout, tabs, drawer, keys, and the talk with the kernel.
 */

const TICK_MS = 100; // while something runs and can be seen
const NOTE_MS = 4000;
const TABS = { requests: "Requests", connections: "Connections", spend: "Spend" };
const VIEWS = { requests: tableView, connections: lanesView, spend: spendView };

/** Anywidget calls this once per widget: its views share a store. */
function nbllmWidget() {
  let store = null;

  function initialize({ model }) {
    store = new Store((message) => model.send(message), model.get("phases"), model.get("scope"));
    const hear = (message, buffers) => store.receive(message.kind === "packed" ? unpacked(buffers[0]) : message);
    model.on("msg:custom", hear);
    const lose = () => store.lose();
    model.on("comm_live_update", lose); // ipywidgets: its kernel was restarted, or is gone
    store.greet();
    return () => {
      model.off("msg:custom", hear);
      model.off("comm_live_update", lose);
    };
  }

  function render({ model, el }) {
    const panel = new Panel(store, model.get("is_wide") ?? false);
    el.append(panel.element);
    panel.update();
    return () => panel.dispose();
  }

  return { initialize, render };
}

/** A message with many rows, which the kernel has sent as the bytes of its JSON: these are faster made. */
function unpacked(buffer) {
  return JSON.parse(new TextDecoder().decode(buffer));
}

/** One view of the widget. */
class Panel {
  #store;
  #tab = null; // the name of the tab that is seen
  #stale = new Set(Object.keys(TABS)); // tabs that have not been drawn since something changed
  #isSeen = true;
  #timer = 0;
  #noteTimer = 0;
  #disposals = [];

  constructor(store, isWide) {
    this.#store = store;
    const { element: root } = this;
    root.style.setProperty("--nbllm-row", `${ROW_HEIGHT}px`);
    this.headline = headlineView(store);
    this.toolbar = toolbarView(store, TABS, (tab) => this.show(tab), isWide);
    this.views = Object.fromEntries(Object.entries(VIEWS).map(([name, make]) => [name, make(store)]));
    const actions = { close: () => this.closeDrawer(), goToCell: (row) => this.#goToCell(row) };
    this.drawer = drawerView(store, actions);
    this.main = element("div", "nbllm-main");
    this.main.append(...Object.entries(this.views).map(([name, view]) => this.#tabPanel(name, view)), this.drawer.element);
    this.waiting = element("p", "nbllm-waiting", "Waiting for the kernel…");
    this.foot = element("div", "nbllm-foot");
    this.legend = legendOf(store.phases);
    this.note = element("span", "nbllm-panel-note", null, { role: "status" });
    this.foot.append(this.legend, this.note, element("span", "nbllm-scope", store.scope));
    root.append(this.headline.element, this.toolbar.element, this.waiting, this.main, this.foot, resizer(root));
    this.#listen();
    this.show("requests");
  }

  element = element("section", "nbllm-panel", null, {
    "aria-label": "LLM requests of this notebook",
    "data-lm-suppress-shortcuts": "true", // JupyterLab's shortcuts listen before the panel does
  });

  #tabPanel(name, view) {
    const id = `${this.toolbar.tabId}-${name}`;
    const role = { role: "tabpanel", id: `${id}-panel`, "aria-labelledby": id };
    const holder = element("div", `nbllm-view nbllm-view-${name}`, null, role);
    holder.append(view.element);
    return holder;
  }

  #listen() {
    this.#disposals.push(this.#store.subscribe((what) => this.#hear(what)));
    this.element.addEventListener("keydown", (event) => this.#pressed(event));
    for (const kind of ["keyup", "keypress"]) this.element.addEventListener(kind, (event) => event.stopPropagation());
    const hidden = () => this.#keepTime();
    document.addEventListener("visibilitychange", hidden);
    const observer = new IntersectionObserver((entries) => {
      this.#isSeen = entries.at(-1).isIntersecting;
      this.#keepTime();
    });
    observer.observe(this.element);
    this.#disposals.push(
      () => document.removeEventListener("visibilitychange", hidden),
      () => observer.disconnect(),
      () => clearInterval(this.#timer),
      () => clearTimeout(this.#noteTimer),
    );
    for (const part of [this.headline, this.toolbar, this.drawer, ...Object.values(this.views)]) {
      this.#disposals.push(() => part.dispose());
    }
  }

  dispose() {
    this.#disposals.forEach((undo) => undo());
    this.#disposals = [];
    this.element.remove();
  }

  // -- what is seen

  #hear(what) {
    if (what === "rows" || what === "filter") {
      this.headline.update();
      this.#sayState();
      this.#keepTime();
    }
    if (["rows", "filter", "folded"].includes(what)) this.toolbar.update();
    if (what !== "details") this.#stale = new Set(Object.keys(TABS));
    this.#draw();
    this.drawer.update();
  }

  /** Everything, as when it is shown for the first time. */
  update() {
    this.#hear("rows");
  }

  show(tab) {
    this.#tab = tab;
    for (const [name, { element: view }] of Object.entries(this.views)) view.parentElement.hidden = name !== tab;
    this.toolbar.show(tab);
    this.legend.hidden = tab !== "requests";
    this.#draw();
  }

  #draw() {
    if (this.#stale.delete(this.#tab)) this.views[this.#tab].update();
  }

  #sayState() {
    const { isLive, isClosed, isLost, leftOut } = this.#store;
    this.element.classList.toggle("nbllm-live", isLive);
    this.waiting.hidden = isLive;
    this.main.hidden = !isLive;
    const parts = [
      isClosed ? "no longer updated: it was closed" : isLost ? "no longer updated: its kernel has ended" : "",
      leftOut ? `${plural(leftOut, "older request")} left out` : "",
    ];
    this.state = parts.filter(Boolean).join(" · ");
    if (!this.#noteTimer) setText(this.note, this.state);
  }

  #say(text) {
    clearTimeout(this.#noteTimer);
    setText(this.note, text);
    this.#noteTimer = setTimeout(() => {
      this.#noteTimer = 0;
      setText(this.note, this.state);
    }, NOTE_MS);
  }

  /** Running requests grow: one timer while there are any and they can be seen. */
  #keepTime() {
    const isWatched = this.#isSeen && !document.hidden && !this.#store.hasEnded;
    const isNeeded = isWatched && this.#store.shown().some((row) => row.status === null);
    if (isNeeded && !this.#timer) this.#timer = setInterval(() => this.views[this.#tab].tick?.(), TICK_MS);
    if (!isNeeded) {
      clearInterval(this.#timer);
      this.#timer = 0;
    }
  }

  closeDrawer() {
    this.#store.select(null);
    if (this.#tab === "requests") this.views.requests.focus();
  }

  // -- keys

  #pressed(event) {
    event.stopPropagation(); // the notebook has keys of its own
    const isTyping = event.target.matches("input, select, textarea");
    if (event.key === "Escape" && this.#store.selected !== null) this.closeDrawer();
    else if (event.key === "/" && !isTyping) {
      event.preventDefault();
      this.toolbar.search.focus();
    }
  }

  // -- the cell

  /** Scroll to the cell of a request in JupyterLab or Notebook 7, where it is in the page. */
  #goToCell(row) {
    const notebook = this.element.closest(".jp-Notebook");
    const prompts = [...(notebook?.querySelectorAll(".jp-Cell .jp-InputPrompt") ?? [])];
    const cell = prompts.find((prompt) => prompt.textContent.trim() === `[${row.execution_count}]:`)?.closest(".jp-Cell");
    if (!cell) return this.#say(`Cell ${cellOf(row)} is not in view.`);
    cell.scrollIntoView({ block: "nearest" });
    const ring = { boxShadow: "inset 0 0 0 2px var(--jp-brand-color1, #1976d2)" };
    return cell.animate([ring, ring, { boxShadow: "none" }], 1500);
  }
}

/** The lower edge, by which the panel is made higher or lower. */
function resizer(root) {
  const edge = element("div", "nbllm-resizer", null, {
    role: "separator",
    tabindex: "0",
    "aria-orientation": "horizontal",
    "aria-label": "Height of the panel",
  });
  const resize = (height) => {
    root.style.height = `${Math.max(240, Math.round(height))}px`;
  };
  edge.addEventListener("pointerdown", (event) => {
    const added = root.offsetHeight - event.clientY;
    const move = (moved) => resize(moved.clientY + added);
    edge.setPointerCapture(event.pointerId);
    edge.addEventListener("pointermove", move);
    edge.addEventListener("lostpointercapture", () => edge.removeEventListener("pointermove", move), { once: true });
    event.preventDefault();
  });
  edge.addEventListener("keydown", (event) => {
    const by = { ArrowUp: -ROW_HEIGHT, ArrowDown: ROW_HEIGHT }[event.key];
    if (!by) return;
    event.preventDefault();
    resize(root.offsetHeight + by);
  });
  return edge;
}

export default nbllmWidget;
