/*
 * What every view needs: elements, numbers as people read them, the time axis, the tooltip.
 *
 * Text goes into the page through `textContent` only: prompts, answers and names come from outside.
 */

const UNKNOWN = "–";
const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const COMPACT = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });

// -- elements -------------------------------------------------------------------------------------------

/** A new element with this text and these attributes. */
function element(tag, className, text, attributes) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes ?? {})) made.setAttribute(name, value);
  return made;
}

/** Set the text where it is another one, so that a selection in it survives. */
function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

let lastId = 0;

/** An id that no other element of the page has. */
function newId(name) {
  lastId += 1;
  return `nbllm-${name}-${lastId}-${Math.random().toString(36).slice(2, 8)}`;
}

// -- numbers --------------------------------------------------------------------------------------------

/** Milliseconds as in the footers: "85 ms", "1.8 s", "2 min 3 s". */
function seconds(ms) {
  if (ms === null || ms === undefined) return UNKNOWN;
  if (ms < 99.5) return `${ms.toFixed(0)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`;
  const whole = Math.round(ms / 1000);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** Milliseconds with a tenth: "1,234.5 ms". */
function exactly(ms) {
  if (ms === null || ms === undefined) return UNKNOWN;
  const [whole, tenth] = ms.toFixed(1).split(".");
  return `${WHOLE.format(whole)}.${tenth} ms`;
}

/** US dollars: two digits that count, at least cents; "free" is a known 0. */
function money(usd) {
  if (usd === null || usd === undefined || !(usd >= 0)) return UNKNOWN;
  if (usd === 0) return "free";
  const decimals = Math.min(20, Math.max(2, 1 - Math.floor(Math.log10(usd))));
  const [whole, cents] = usd.toFixed(decimals).split(".");
  return `$${WHOLE.format(whole)}.${cents}`;
}

function count(n) {
  return n === null || n === undefined ? UNKNOWN : WHOLE.format(n);
}

/** As `count`, large ones short: "12.3K", "1.23M". */
function compact(n) {
  return n === null || n === undefined || n < 10_000 ? count(n) : COMPACT.format(n);
}

/** "412→96 tok"; "412 tok in" where only the one is known. */
function tokens(input, output) {
  const [hasInput, hasOutput] = [input, output].map((n) => n !== null && n !== undefined);
  if (hasInput && hasOutput) return `${count(input)}→${count(output)} tok`;
  if (hasInput) return `${count(input)} tok in`;
  return hasOutput ? `${count(output)} tok out` : UNKNOWN;
}

function bytes(n) {
  if (n === null || n === undefined) return UNKNOWN;
  if (n < 1000) return `${count(n)} B`;
  const [value, unit] = n < 1e6 ? [n / 1e3, "kB"] : n < 1e9 ? [n / 1e6, "MB"] : [n / 1e9, "GB"];
  return `${value.toFixed(1)} ${unit}`;
}

function percent(ratio) {
  return ratio === null || ratio === undefined ? UNKNOWN : `${Math.round(100 * ratio)} %`;
}

const two = (n) => String(n).padStart(2, "0");

/** The time of day in the browser's zone: "14:03:09". */
function clock(epoch) {
  if (epoch === null || epoch === undefined) return UNKNOWN;
  const at = new Date(epoch * 1000);
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/** Day and time: "2026-03-07 14:03:09". */
function moment(epoch) {
  if (epoch === null || epoch === undefined) return UNKNOWN;
  const at = new Date(epoch * 1000);
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock(epoch)}`;
}

// -- the time axis --------------------------------------------------------------------------------------

const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500].map((ms) => ms / 1000);
STEPS.push(1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 21_600, 86_400);

/**
 * A common time axis of rows, from 0 to 1, in which long pauses are cut down to narrow breaks.
 *
 * A pause is long in which nothing was in flight for more than 2 s and more than 3 % of the busy time: a
 * person's pauses between two cells would otherwise leave no room for the requests.
 */
class TimeAxis {
  /** `rows`: requests; `now`: epoch seconds, as are `spans`, other stretches [from, to] that it shall cover. */
  constructor(rows, now, spans = []) {
    const busy = merged(rows.map((row) => [startOf(row), endOf(row, now)]).concat(spans), 0);
    const longest = Math.max(2, 0.03 * sum(busy.map(([from, to]) => to - from)));
    this.segments = TimeAxis.#placed(merged(busy, longest));
  }

  static #placed(spans) {
    const breaks = spans.length - 1;
    const width = breaks > 0 ? Math.min(0.03, 0.25 / breaks) : 0;
    const length = Math.max(1e-6, sum(spans.map(([from, to]) => to - from)));
    const scale = (1 - width * Math.max(0, breaks)) / length;
    let x = 0;
    return spans.map(([from, to]) => {
      const segment = { from, to, x, end: x + (to - from) * scale, scale };
      x = segment.end + width;
      return segment;
    });
  }

  /** Where a moment is, 0 to 1. */
  x(epoch) {
    let [low, high] = [0, this.segments.length - 1];
    if (high < 0) return 0;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.segments[middle].from <= epoch) low = middle;
      else high = middle - 1;
    }
    const { from, to, x, end, scale } = this.segments[low];
    if (epoch <= to) return x + Math.max(0, epoch - from) * scale;
    const next = this.segments[low + 1];
    return next ? end + ((epoch - to) / (next.from - to)) * (next.x - end) : end;
  }

  /** The breaks: middle, width, and the seconds that they stand for. */
  get gaps() {
    return this.segments.slice(1).map((next, i) => {
      const { to, end } = this.segments[i];
      return { x: (end + next.x) / 2, width: next.x - end, seconds: next.from - to };
    });
  }

  /** At most about `n` labels: the clock where a stretch of work begins, then the time since. */
  ticks(n) {
    const room = 1 / Math.max(1, n);
    const placed = [];
    const fits = (x) => x <= 1 - 0.6 * room && placed.every((tick) => Math.abs(tick.x - x) >= room);
    const place = (x, label) => fits(x) && placed.push({ x, label });
    this.segments.forEach(({ from, x }) => place(x, clock(from)));
    const busy = sum(this.segments.map(({ from, to }) => to - from));
    const step = STEPS.find((size) => size >= busy * room) ?? STEPS.at(-1);
    for (const { from, to, x, scale } of this.segments) {
      const steps = Math.min(n, Math.floor((to - from) / step));
      for (let i = 1; i <= steps; i += 1) place(x + i * step * scale, `+${rounded(i * step)}`);
    }
    return placed.sort((one, other) => one.x - other.x);
  }
}

/** Seconds on an axis: "200 ms", "2 s", "5 min", "2 h". */
function rounded(value) {
  const tidy = (n) => String(Number(n.toFixed(1)));
  if (value < 0.9995) return `${tidy(value * 1000)} ms`;
  if (value < 120) return `${tidy(value)} s`;
  return value < 7200 ? `${tidy(value / 60)} min` : `${tidy(value / 3600)} h`;
}

/** Intervals [from, to] in order, put together where no more than `pause` is between them. */
function merged(spans, pause) {
  const ordered = [...spans].sort((one, other) => one[0] - other[0]);
  const joined = [];
  for (const [from, to] of ordered) {
    const last = joined.at(-1);
    if (last && from - last[1] <= pause) last[1] = Math.max(last[1], to);
    else joined.push([from, to]);
  }
  return joined;
}

function sum(values) {
  let all = 0;
  for (const value of values) all += value;
  return all;
}

// -- the tooltip ----------------------------------------------------------------------------------------

/** A box with more about something, beside it and within the panel; `title` would not come with the keyboard. */
class Tooltip {
  constructor() {
    this.element = element("div", "nbllm-tooltip", null, { role: "tooltip", id: newId("tooltip") });
    this.element.hidden = true;
  }

  /** Show these nodes at the target, and tie them to it for screen readers. */
  show(target, ...nodes) {
    this.hide();
    this.target = target;
    this.element.replaceChildren(...nodes);
    this.element.hidden = false;
    target.setAttribute("aria-describedby", this.element.id);
    const [panel, at] = [this.element.offsetParent, target].map((one) => one?.getBoundingClientRect());
    if (!panel) return;
    const { offsetWidth: width, offsetHeight: height } = this.element;
    const left = Math.min(at.left - panel.left, panel.width - width - 8);
    const below = at.bottom - panel.top + 4;
    const above = at.top - panel.top - height - 4;
    this.element.style.left = `${Math.max(8, left)}px`;
    this.element.style.top = `${below + height <= panel.height - 4 || above < 4 ? below : above}px`;
  }

  hide() {
    this.element.hidden = true;
    this.target?.removeAttribute("aria-describedby");
    this.target = null;
  }
}
