/** Rates over time as SVG: how many were inspected, and how often the decisions were wrong. */

import { draw, make, percent, whole } from "./dom.js";

const HIGH = 128; // of each of the two parts, in pixels
const GAP = 46;
const LEFT = 44;
const TOP = 8;

/** Share a/(a+b); null where nothing was judged. */
const share = (a, b) => (a + b ? a / (a + b) : null);

export const RATES = [
  { name: "Share called anomalous", kind: "called", of: (p) => share(p.anomalous, p.count - p.anomalous) },
  { name: "False alarms among judged alarms", kind: "false", of: (p) => share(p.false_alarm, p.confirmed) },
  { name: "Missed among judged normal calls", kind: "missed", of: (p) => share(p.missed, p.correct) },
];

/** "22 Nov 26", a day of UTC as the server counts it, or "22 Nov, 14:00" in local time. */
export function periodName(start, by) {
  const time = new Date(start);
  const day = { day: "numeric", month: "short", year: "2-digit", timeZone: "UTC" };
  if (by !== "hour") return time.toLocaleDateString(undefined, day);
  return time.toLocaleString(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
}

/** The smallest of 1, 2, 4, 6, 8 times a power of ten that is no smaller: its half is a round number too. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, value)));
  return [1, 2, 4, 6, 8, 10].map((digit) => digit * power).find((step) => step >= value) ?? 1;
}

/** An SVG element for `periods` of /v1/rates, `width` pixels wide. */
export function ratesChart(periods, by, width) {
  const plot = Math.max(60, width - LEFT - 8);
  const step = plot / periods.length;
  const height = TOP + 2 * HIGH + GAP + 26;
  const inspected = periods.reduce((sum, p) => sum + p.count, 0);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", class: "rates" });
  const [from, to] = [periods[0], periods[periods.length - 1]].map((p) => periodName(p.start, by));
  svg.append(draw("title", {}, `${whole(inspected)} inspections from ${from} to ${to}; the table below has the numbers`));
  const most = nice(Math.max(...periods.map((p) => p.count)));
  const bottoms = [TOP + HIGH, TOP + 2 * HIGH + GAP];
  axis(svg, bottoms[0], [0, most / 2, most].map((v) => [v / most, most < 2 && v % 1 ? "" : whole(v)]), width);
  axis(svg, bottoms[1], [0, 0.5, 1].map((v) => [v, `${100 * v} %`]), width);
  const x = (i) => LEFT + (i + 0.5) * step;
  periods.forEach((p, i) => bars(svg, p, x(i), Math.max(1, Math.min(38, step * 0.7)), bottoms[0], most, periodName(p.start, by)));
  for (const rate of RATES) line(svg, periods, rate, x, bottoms[1]);
  const each = Math.ceil(periods.length / Math.max(1, Math.floor(plot / 96)));
  periods.forEach((p, i) => {
    if (i % each === 0) label(svg, x(i), bottoms[1] + 18, periodName(p.start, by), "middle");
  });
  return svg;
}

function label(svg, x, y, text, anchor) {
  svg.append(draw("text", { x, y, "text-anchor": anchor }, text));
}

function axis(svg, bottom, ticks, width) {
  for (const [at, text] of ticks) {
    const y = bottom - at * HIGH;
    svg.append(draw("line", { x1: LEFT, x2: width - 8, y1: y, y2: y, class: at ? "grid" : "base" }));
    label(svg, LEFT - 7, y + 4, text, "end");
  }
}

function bars(svg, period, x, width, bottom, most, name) {
  const parts = [["anomalous", period.anomalous], ["normal", period.count - period.anomalous]];
  const group = draw("g", {}, draw("title", {}, `${name}: ${whole(period.count)}, ${whole(period.anomalous)} anomalous`));
  let y = bottom;
  for (const [kind, count] of parts) {
    const height = (count / most) * HIGH;
    y -= height;
    if (count) group.append(draw("rect", { x: x - width / 2, y, width, height, class: kind }));
  }
  svg.append(group);
}

/** Neighbouring periods with a value are joined; each value has a mark of the rate's own shape. */
function line(svg, periods, rate, x, bottom) {
  const values = periods.map(rate.of);
  let path = "";
  values.forEach((value, i) => {
    if (value === null) return;
    const joined = i > 0 && values[i - 1] !== null;
    path += `${joined ? "L" : "M"}${x(i).toFixed(1)} ${(bottom - value * HIGH).toFixed(1)}`;
  });
  svg.append(draw("path", { d: path || "M0 0", class: `rate ${rate.kind}` }));
  values.forEach((value, i) => {
    if (value !== null) svg.append(mark(rate, x(i), bottom - value * HIGH, `${rate.name}: ${percent(value)}`));
  });
}

/** A circle, a square or a triangle: told apart without colours. */
export function mark(rate, x, y, title) {
  const shapes = {
    called: () => draw("circle", { cx: x, cy: y, r: 3.5 }),
    false: () => draw("rect", { x: x - 3.5, y: y - 3.5, width: 7, height: 7 }),
    missed: () => draw("path", { d: `M${x} ${y - 4.5}l4.5 8h-9z` }),
  };
  const shape = shapes[rate.kind]();
  shape.setAttribute("class", `mark ${rate.kind}`);
  if (title) shape.append(draw("title", {}, title));
  return shape;
}

/** The same numbers as a table. */
export function ratesTable(periods, by) {
  const head = ["From", "Inspected", "Anomalous", "Confirmed", "False alarm", "Missed", "Good", ...RATES.map((r) => r.name)];
  const counts = (p) => [p.count, p.anomalous, p.confirmed, p.false_alarm, p.missed, p.correct].map(whole);
  const shares = (p) => RATES.map((rate) => (rate.of(p) === null ? "–" : percent(rate.of(p))));
  const rows = periods.map((p) => [periodName(p.start, by), ...counts(p), ...shares(p)]);
  const cells = (row, tag) => row.map((text, i) => make(i ? tag : "th", { scope: tag === "th" ? "col" : i ? null : "row" }, text));
  return make(
    "table",
    {},
    make("caption", { class: "unseen" }, "Inspections and verdicts over time"),
    make("thead", {}, make("tr", {}, ...cells(head, "th"))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row, "td")))),
  );
}
