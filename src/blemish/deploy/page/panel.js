/** The right-hand panel: decision, verdict, thresholds, what lies above the pixel threshold. */

import { drawColorBar, USUAL_OPACITY } from "./colors.js";
import { byId, fixed, make, percent, perFrame, plural, whole } from "./dom.js";
import { decision, pixelThresholdFor, settings, thresholdFor, VERDICTS, verdictsFor } from "./visit.js";

const WORDS = { anomalous: ["▲", "Anomalous"], normal: ["●", "Normal"], scored: ["■", "Scored"] };
const REGIONS_SHOWN = 8;

export class Panel {
  /**
   * onThresholds(): a threshold was moved. onOpacity(share). onVerdict(name): a verdict was chosen. onRegion(box).
   */
  constructor({ onThresholds, onOpacity, onVerdict, onRegion }) {
    Object.assign(this, { onThresholds, onOpacity, onVerdict, onRegion, item: null, items: [], opacity: USUAL_OPACITY });
    drawColorBar(byId("color-bar"));
    for (const [id, key] of [["threshold", "threshold"], ["pixel-threshold", "pixelThreshold"]]) {
      byId(id).addEventListener("input", (event) => this._moved(key, event.target.valueAsNumber));
      byId(`${id}-number`).addEventListener("change", (event) => this._moved(key, event.target.valueAsNumber));
    }
    byId("reset").addEventListener("click", () => {
      settings.threshold = settings.pixelThreshold = null;
      this.onThresholds();
      byId("threshold").focus(); // the button itself is about to go
    });
    byId("opacity").value = 100 * this.opacity;
    byId("opacity").addEventListener("input", (event) => this.setOpacity(event.target.valueAsNumber / 100));
    this.setOpacity(this.opacity);
    this.drawScores = perFrame(() => this._drawScores());
    new ResizeObserver(this.drawScores).observe(byId("scores"));
    addEventListener("theme", () => this.drawScores());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", this.drawScores);
  }

  setOpacity(share) {
    this.opacity = share;
    byId("opacity").value = 100 * share;
    byId("opacity-value").textContent = `${Math.round(100 * share)} %`;
    this.onOpacity(share);
  }

  /** item: the current picture or null. items: all of this visit, for the scale of scores. */
  show(item, items) {
    this.item = item;
    this.items = items;
    this._showDecision();
    this._showVerdict();
    this._showThresholds();
    this._showFacts();
  }

  _moved(key, value) {
    if (Number.isFinite(value)) settings[key] = value;
    this.onThresholds();
  }

  _showDecision() {
    const state = this.item ? decision(this.item) : "scored";
    byId("decision").dataset.state = state;
    [byId("decision-mark").textContent, byId("decision-word").textContent] = WORDS[state];
    byId("score").textContent = this.item ? `Score ${fixed(this.item.score)}` : "";
    const threshold = thresholdFor(this.item);
    const against = threshold === null ? "no threshold is set" : `threshold ${fixed(threshold)}`;
    byId("against").textContent = this.item ? against : "";
  }

  _showVerdict() {
    const item = this.item;
    const choices = item ? verdictsFor(item) : [];
    const box = byId("verdicts");
    if (box.dataset.choices !== choices.join()) {
      box.dataset.choices = choices.join();
      box.replaceChildren(...choices.map((name) => this._verdictButton(name)));
    }
    for (const button of box.children) {
      button.setAttribute("aria-pressed", String(button.dataset.verdict === item.verdict));
    }
    byId("verdict-note").textContent = item ? this._verdictNote(item) : "";
  }

  _verdictButton(name) {
    const { action, key } = VERDICTS[name];
    const click = () => this.onVerdict(name);
    const attributes = { type: "button", "data-verdict": name, "aria-keyshortcuts": key, onclick: click };
    return make("button", attributes, action, make("kbd", { "aria-hidden": "true" }, key));
  }

  _verdictNote(item) {
    const notes = [];
    const called = { true: "anomalous", false: "normal" }[item.recorded];
    if (called && called !== decision(item)) {
      notes.push(`Recorded as ${called} at the threshold ${fixed(item.threshold)}; the verdict is on that.`);
    }
    if (item.saving) notes.push("Storing …");
    else if (item.verdictError) notes.push(`Not stored: ${item.verdictError}`);
    else if (item.id === null) notes.push("The server keeps no history: verdicts stay in this page and its CSV.");
    else notes.push(item.verdict ? "Stored." : "No verdict yet.");
    return notes.join(" ");
  }

  _showThresholds() {
    const scores = this.items.map((item) => item.score);
    const threshold = thresholdFor(this.item);
    const used = threshold === null ? scores : [...scores, threshold];
    const [low, high] = [Math.min(0, ...used), Math.max(1, ...used)];
    place("threshold", low, high, threshold, this.item && threshold !== null ? WORDS[decision(this.item)][1] : "");
    this.scoreRange = [low, high];
    this.drawScores();
    const [mapLow, mapHigh] = this.item?.mapRange ?? settings.model.map_range ?? [0, 1];
    place("pixel-threshold", mapLow, mapHigh, pixelThresholdFor(this.item));
    byId("map-low").textContent = String(+mapLow.toPrecision(3));
    byId("map-high").textContent = String(+mapHigh.toPrecision(3));
    byId("changed").hidden = settings.threshold === null && settings.pixelThreshold === null;
  }

  /** One line per score of the visit, so that the threshold is seen among them. */
  _drawScores() {
    const canvas = byId("scores");
    const ratio = devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (!width) return;
    Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const [low, high] = this.scoreRange ?? [0, 1];
    const put = (item, color, thick, share) => {
      const x = ((item.score - low) / (high - low)) * width;
      context.fillStyle = style.getPropertyValue(color);
      context.fillRect(Math.min(width - thick * ratio, Math.max(0, x - (thick * ratio) / 2)), height * (1 - share), thick * ratio, height * share);
    };
    const tints = { anomalous: "--bad", normal: "--good", scored: "--accent" };
    for (const item of this.items) put(item, tints[decision(item)], 2, 0.55);
    if (this.item) put(this.item, "--ink", 3, 1);
  }

  _showFacts() {
    const item = this.item;
    const rows = item
      ? [
          ["Size", `${whole(item.width)} × ${whole(item.height)} px`],
          ["Highest map value", fixed(item.mapMax)],
          ["Time on the server", Number.isFinite(item.seconds) ? `${Math.round(1000 * item.seconds)} ms` : null],
          ["Inspection", item.id === null ? null : `no. ${item.id}`],
          ["SHA-256", item.sha256 ? `${item.sha256.slice(0, 16)}…` : null],
        ]
      : [];
    const given = rows.filter(([, text]) => text !== null);
    byId("facts").replaceChildren(...given.map(([term, text]) => make("div", {}, make("dt", {}, term), make("dd", {}, text))));
  }

  /** found: what `maskOf` gave, or null; factor: picture pixels per map pixel along a side. */
  showMask(found, factor = 1) {
    const text = byId("mask");
    const list = byId("regions");
    if (!found) {
      const why = this.item?.mapError ?? (pixelThresholdFor(this.item) === null ? "no pixel threshold is set" : "");
      text.textContent = why;
      delete text.dataset.pixels;
      list.replaceChildren();
      return;
    }
    const pixels = found.count * factor * factor;
    text.dataset.pixels = String(found.count);
    byId("pixel-threshold").setAttribute("aria-valuetext", `${fixed(pixelThresholdFor(this.item))}, ${percent(found.share, 2)} above`);
    const about = factor > 1 ? "about " : "";
    text.textContent = found.count
      ? `${plural(found.regions.length, "region")}, ${about}${whole(pixels)} px, ${percent(found.share, 2)} of the picture`
      : "None.";
    const shown = found.regions.slice(0, REGIONS_SHOWN);
    list.replaceChildren(...shown.map((region) => this._region(region, factor)));
    const rest = found.regions.length - shown.length;
    if (rest > 0) list.append(make("li", { class: "quiet" }, `and ${whole(rest)} more`));
  }

  _region({ box, area, peak }, factor) {
    const place = box.map((value) => value * factor);
    const words = `peak ${fixed(peak)}, ${whole(area * factor * factor)} px, at ${place[0]}, ${place[1]}`;
    const button = make("button", { type: "button", class: "plain", title: "Show", onclick: () => this.onRegion(place) }, words);
    return make("li", {}, button);
  }
}

/**
 * Set a slider and its number field; null: nothing is set yet, the slider stands at its upper end. outcome: what the
 * value leads to, said with it, since who cannot see the page would have to leave the slider to hear it.
 */
function place(id, low, high, value, outcome = "") {
  const [slider, number] = [byId(id), byId(`${id}-number`)];
  slider.min = low;
  slider.max = high;
  slider.value = value ?? high;
  slider.setAttribute("aria-valuetext", [value === null ? "not set" : fixed(value), outcome].filter(Boolean).join(", "));
  if (document.activeElement !== number || number.validity.valid) number.value = value === null ? "" : +value.toPrecision(6);
}
