/*
 * What every view needs: elements, numbers as people read them, the time axis, the tooltip.
 *
 * Text goes into the page through `textContent` only: prompts, answers and names come from outside.
 */

const UNKNOWN = "–";
const ROW_HEIGHT = 24; // pixels, of a request as of a lane; the style sheets have it as --nbllm-row
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

function button(label, act) {
  const made = element("button", "nbllm-button", label, { type: "button" });
  made.addEventListener("click", act);
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
// Those of nbllm/units.py, and a test holds both to one table; `exactly` and `compact` are the panel's own.

/** So many decimals with commas, rounded as Python does: the half, if it is one exactly, to the even digit. */
function fixed(value, decimals) {
  let text = Math.abs(value).toFixed(decimals); // rounds the half up
  const exact = Math.abs(value).toFixed(100); // no half that these decimals can have is longer
  const beyond = exact.slice(exact.indexOf(".") + 1 + decimals);
  const isHalf = /^50*$/.test(beyond) && Math.abs(value) < 2 ** 53;
  if (isHalf && "13579".includes(text.at(-1))) text = exact.slice(0, exact.length - beyond.length).replace(/\.$/, "");
  const [whole, rest] = text.split(".");
  const sign = value < 0 || Object.is(value, -0) ? "-" : "";
  return sign + WHOLE.format(whole) + (rest ? `.${rest}` : "");
}

/** A time in milliseconds: "85 ms", "1.8 s", "2 min 3 s". */
function seconds(ms) {
  if (!Number.isFinite(ms)) return UNKNOWN;
  if (ms < 0) return `-${seconds(-ms)}`;
  if (ms < 99.5) return `${fixed(ms, 0.05 < ms && ms < 0.95 ? 1 : 0)} ms`;
  if (ms < 59_950) return `${fixed(ms / 1e3, 1)} s`;
  const whole = Number(fixed(ms / 1e3, 0).replaceAll(",", ""));
  return `${fixed(Math.floor(whole / 60), 0)} min ${whole % 60} s`;
}

/** Milliseconds with a tenth: "1,234.5 ms". */
function exactly(ms) {
  return Number.isFinite(ms) ? `${fixed(ms, 1)} ms` : UNKNOWN;
}

/** US dollars: "free", "$0.0011", "$1.20"; two digits that count, at least cents. */
function money(usd) {
  if (!Number.isFinite(usd)) return UNKNOWN;
  if (usd === 0) return "free";
  const decimals = Math.max(2, 1 - Math.floor(Math.log10(Math.abs(usd))));
  return `${usd < 0 ? "-" : ""}$${fixed(Math.abs(usd), Math.min(100, decimals))}`;
}

/** How many: "12,345"; "412.5" of an average. */
function count(n) {
  if (!Number.isFinite(n)) return UNKNOWN;
  return fixed(n, Number.isInteger(n) ? 0 : 1);
}

/** So many of something: "1 request", "12,345 requests". */
function plural(n, noun) {
  return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** Bytes, in powers of 1,000: "950 B", "1.2 kB", "12 kB". */
function size(bytes) {
  if (!Number.isFinite(bytes)) return UNKNOWN;
  let [value, unit] = [bytes, "B"];
  for (const larger of ["kB", "MB", "GB", "TB"]) {
    if (Math.abs(value) < 999.5) break;
    [value, unit] = [value / 1e3, larger];
  }
  return `${fixed(value, unit !== "B" && Math.abs(value) < 9.95 ? 1 : 0)} ${unit}`;
}

/** A share of 1: "87 %". */
function percent(ratio) {
  return Number.isFinite(ratio) ? `${fixed(ratio * 100, 0).replaceAll(",", "")} %` : UNKNOWN;
}

/** Tokens in and out: "412→96"; a dash for the one that is unknown. */
function tokens(sent, got, format = count) {
  return (sent ?? null) === null && (got ?? null) === null ? UNKNOWN : `${format(sent)}→${format(got)}`;
}

/** As `count`, large ones short: "12.3K", "1.23M". */
function compact(n) {
  return n >= 10_000 && Number.isFinite(n) ? COMPACT.format(n) : count(n);
}

const two = (n) => String(n).padStart(2, "0");

/** Epoch seconds in the browser's zone: "14:03:22"; "2026-11-21 14:03:22". */
function clock(epoch, hasDay = false) {
  if ((epoch ?? null) === null) return UNKNOWN;
  const at = new Date(Math.floor(epoch) * 1000);
  const time = [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":");
  return hasDay ? `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${time}` : time;
}

/** The parts that there are, as one line. */
function joined(...parts) {
  return parts.filter(Boolean).join(" · ");
}

// -- the time axis --------------------------------------------------------------------------------------

const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500].map((ms) => ms / 1000);
STEPS.push(1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 21_600, 86_400);

// A pause is cut where it is longer than this many seconds and this share of the busy time; then it takes this
// share of the axis, and all of them together at most that one. As in nbllm/time_axis.py.
const IDLE_SECONDS = 2;
const IDLE_SHARE = 0.03;
const BREAK_SHARE = 0.03;
const BREAKS_SHARE = 0.25;

/**
 * A common time axis of rows, from 0 to 1, in which long pauses are cut down to narrow breaks: a person's
 * pauses between two cells would otherwise leave no room for the requests.
 */
class TimeAxis {
  /** `rows`: requests; `now`: epoch seconds, as are `spans`, other stretches [from, to] that it shall cover. */
  constructor(rows, now, spans = []) {
    const busy = merged(rows.map((row) => [startOf(row), endOf(row, now)]).concat(spans), 0);
    const lengths = (stretches) => sum(stretches.map(([from, to]) => to - from));
    const shown = merged(busy, Math.max(IDLE_SECONDS, IDLE_SHARE * lengths(busy)));
    const breaks = Math.max(0, shown.length - 1);
    const share = Math.min(BREAK_SHARE, BREAKS_SHARE / Math.max(1, breaks));
    const narrow = ((lengths(shown) || 1) * share) / (1 - share * breaks);
    const ends = []; // seconds from the axis' beginning
    for (const [from, to] of shown) ends.push((ends.length ? ends.at(-1) + narrow : 0) + to - from);
    const scale = 1 / (ends.at(-1) || 1);
    this.segments = shown.map(([from, to], i) => {
      const x = i ? (ends[i - 1] + narrow) * scale : 0;
      return { from, to, x, end: ends[i] * scale, scale };
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
