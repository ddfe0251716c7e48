/** The history tab: what the server has recorded, with filters, verdicts, rates and CSV. */

import { json, putVerdict, query, request } from "./api.js";
import { mark, RATES, ratesChart, ratesTable } from "./chart.js";
import { announce, byId, draw, fixed, make, perFrame, plural, save } from "./dom.js";
import { VERDICTS } from "./visit.js";

const PAGE_ROWS = 50;
const TYPING = 250; // milliseconds to wait for the next letter

export class History {
  /** onOpen(row): show a kept inspection. onVerdict(row): a verdict was stored. */
  constructor({ onOpen, onVerdict }) {
    Object.assign(this, { onOpen, onVerdict, next: null, count: 0, asked: 0, periods: [], enabled: true });
    let typing = 0;
    for (const id of ["history-decision", "history-verdict", "history-since", "history-until"]) {
      byId(id).addEventListener("change", () => this.load());
    }
    byId("history-find").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.load(), TYPING);
    });
    byId("history-filters").addEventListener("submit", (event) => event.preventDefault());
    byId("history-filters").addEventListener("reset", () => setTimeout(() => this.load()));
    byId("history-more").addEventListener("click", () => this.more());
    byId("history-csv").addEventListener("click", () => this._download());
    byId("rates-by").addEventListener("change", () => this.loadRates());
    const redraw = perFrame(() => this._drawRates());
    new ResizeObserver(redraw).observe(byId("rates"));
  }

  /** Read everything anew. Called when the tab is opened. */
  async open() {
    byId("history-off").hidden = this.enabled;
    byId("history-on").hidden = !this.enabled;
    if (this.enabled) await Promise.all([this.load(), this.loadRates()]);
  }

  _filters() {
    const day = (id, later) => {
      const value = byId(id).value;
      if (!value) return null;
      const time = new Date(`${value}T00:00:00`); // the operator's day, not Greenwich's
      time.setDate(time.getDate() + later);
      return time.toISOString();
    };
    return {
      q: byId("history-find").value.trim(),
      decision: byId("history-decision").value,
      verdict: byId("history-verdict").value,
      since: day("history-since", 0),
      until: day("history-until", 1),
    };
  }

  async load() {
    this.count = 0;
    this.next = null;
    await this._read((rows) => byId("history-rows").replaceChildren(...rows));
  }

  async more() {
    const before = byId("history-rows").children.length;
    await this._read((rows) => byId("history-rows").append(...rows));
    byId("history-rows").children[before]?.querySelector("button, select")?.focus();
  }

  /** One page of rows; an answer that comes after a newer question is dropped. */
  async _read(place) {
    const number = ++this.asked;
    try {
      const found = await json(`v1/history${query({ limit: PAGE_ROWS, before: this.next, ...this._filters() })}`);
      if (number !== this.asked) return;
      place(found.items.map((row) => this._row(row)));
      this.count += found.items.length;
      this.next = found.next;
      const shown = `${this.next === null ? "" : "The newest "}${plural(this.count, "inspection")}`;
      byId("history-status").textContent = this.count ? shown : "No inspection matches.";
    } catch (error) {
      if (number === this.asked) byId("history-status").textContent = `The history cannot be read: ${error.message}`;
    }
    byId("history-more").hidden = this.next === null;
    byId("history-table").hidden = !this.count;
  }

  _row(row) {
    const state = row.is_anomalous === null ? "scored" : row.is_anomalous ? "anomalous" : "normal";
    const words = { anomalous: "▲ Anomalous", normal: "● Normal", scored: "■ Scored" };
    const time = new Date(row.time);
    const open = row.kept && make("button", { type: "button", class: "plain", onclick: () => this.onOpen(row) }, row.name);
    return make(
      "tr",
      {},
      make("td", {}, make("time", { datetime: row.time, title: row.time }, time.toLocaleString())),
      make("th", { scope: "row", class: "file" }, open || row.name),
      make("td", { class: "number" }, fixed(row.score)),
      make("td", { class: "number" }, row.threshold === null ? "–" : fixed(row.threshold)),
      make("td", {}, make("span", { class: `tag ${state}` }, words[state])),
      make("td", {}, this._verdict(row)),
      make("td", { class: "model" }, row.model ?? ""),
    );
  }

  _verdict(row) {
    const fits = ([name, { called }]) => row.is_anomalous === null || called === row.is_anomalous || name === row.verdict;
    const choices = Object.entries(VERDICTS).filter(fits);
    const select = make(
      "select",
      { "aria-label": `Verdict on ${row.name}` },
      make("option", { value: "" }, "–"),
      ...choices.map(([name, { label }]) => make("option", { value: name, selected: name === row.verdict }, label)),
    );
    select.addEventListener("change", async () => {
      try {
        Object.assign(row, await putVerdict(row.id, select.value || null));
        announce(`Verdict stored: ${row.verdict ? VERDICTS[row.verdict].label : "none"}`);
        this.onVerdict(row);
        this.loadRates();
      } catch (error) {
        select.value = row.verdict ?? "";
        byId("history-status").textContent = `The verdict was not stored: ${error.message}`;
      }
    });
    return select;
  }

  async loadRates() {
    const by = byId("rates-by").value;
    try {
      this.periods = (await json(`v1/rates${query({ by })}`)).periods;
      byId("rates-status").textContent = this.periods.length ? "" : "No inspections yet.";
    } catch (error) {
      this.periods = [];
      byId("rates-status").textContent = `The rates cannot be read: ${error.message}`;
    }
    byId("rates-table").replaceChildren(...(this.periods.length ? [ratesTable(this.periods, by)] : []));
    byId("rates-details").hidden = !this.periods.length;
    this._drawRates();
  }

  _drawRates() {
    const box = byId("rates");
    const width = Math.floor(box.clientWidth);
    if (!this.periods.length || !width) {
      box.replaceChildren();
      return;
    }
    const key = (shape, text) => make("li", {}, draw("svg", { viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": "true" }, shape), text);
    const square = (kind) => draw("rect", { x: 1, y: 1, width: 10, height: 10, class: kind });
    const legend = make(
      "ul",
      { class: "legend" },
      key(square("anomalous"), "Called anomalous (count)"),
      key(square("normal"), "Called normal (count)"),
      ...RATES.map((rate) => key(mark(rate, 6, 6), rate.name)),
    );
    box.replaceChildren(legend, ratesChart(this.periods, byId("rates-by").value, width));
  }

  /** Through fetch, since a link could not carry the token. */
  async _download() {
    try {
      save(await (await request(`v1/history.csv${query(this._filters())}`)).blob(), "inspections.csv");
    } catch (error) {
      byId("history-status").textContent = `The CSV file cannot be had: ${error.message}`;
    }
  }
}
