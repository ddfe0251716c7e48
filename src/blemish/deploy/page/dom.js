/** Small helpers that every part of the page uses. */

export const byId = (id) => document.getElementById(id);

/**
 * An element. Attributes: functions become listeners ("onclick"), true an empty attribute, false, null and
 * undefined none. Children: nodes or strings; strings are text, never markup.
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** The same for SVG. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(element, attributes);
  element.append(...children);
  return element;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
}

const TAIL = 8; // letters of a name's end that stay when it is too long: "_017.png"

/** A file name in two parts, of which the first gives way: names of one series differ at their ends. */
export function fileName(name) {
  const at = Math.max(0, name.length - TAIL);
  return [make("span", { class: "head" }, name.slice(0, at)), make("span", { class: "tail" }, name.slice(at))];
}

let clearing = 0;

/** Say a line to screen readers. Emptied first, since the same words twice would be said once. */
export function announce(text) {
  const region = byId("announcer");
  region.textContent = "";
  clearTimeout(clearing);
  clearing = setTimeout(() => (region.textContent = text), 60);
}

/** A score or map value, always with the same number of digits so that columns line up. */
export const fixed = (value) => (Number.isFinite(value) ? value.toFixed(Math.abs(value) < 100 ? 3 : 1) : "–");

export const whole = (value) => value.toLocaleString("en-US");

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

export const plural = (count, one, many = `${one}s`) => `${whole(count)} ${count === 1 ? one : many}`;

/** Bytes in the unit that reads best. */
export const bytes = (count) =>
  count < 1e6 ? `${Math.max(1, Math.round(count / 1e3))} kB` : `${(count / 1e6).toFixed(count < 1e7 ? 1 : 0)} MB`;

/** Runs at most once per frame, however often it is asked for. */
export function perFrame(action) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      action();
    });
  };
}

/** Let the browser save a file. */
export function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/**
 * Rows as CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it.
 */
export function csv(rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return new Blob([rows.map((row) => `${row.map(cell).join(",")}\n`).join("")], { type: "text/csv" });
}
