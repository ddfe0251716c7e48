/** The pictures of this visit as a list to choose from: sorted, filtered, one tab stop. */

import { byId, fileName, fixed, make, perFrame, whole } from "./dom.js";
import { decision, VERDICTS } from "./visit.js";

/** Unlike a difference, right for two infinite ones too. */
const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

const ORDERS = {
  oldest: (a, b) => compare(a.order, b.order),
  newest: (a, b) => compare(b.order, a.order),
  highest: (a, b) => b.score - a.score,
  lowest: (a, b) => a.score - b.score,
  name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
};
const FILTERS = {
  all: () => true,
  anomalous: (item) => decision(item) === "anomalous",
  normal: (item) => decision(item) === "normal",
  unjudged: (item) => item.verdict === null,
};
const MARKS = { anomalous: "▲", normal: "●", scored: "■" };

export class Gallery {
  /** onSelect(item): the operator chose another picture. onRender(): the list may have changed. */
  constructor({ onSelect, onRender }) {
    this.onSelect = onSelect;
    this.onRender = onRender;
    this.items = [];
    this.shown = [];
    this.current = null;
    this.nodes = new Map();
    this.list = byId("thumbs");
    this.render = perFrame(() => this._render());
    for (const id of ["sort", "show"]) byId(id).addEventListener("change", this.render);
    byId("find").addEventListener("input", this.render);
    const choose = (event) => {
      const node = event.target.closest("[role=option]");
      if (node) this.onSelect(this.items.find((item) => item.key === node.id));
    };
    this.list.addEventListener("click", choose);
    this.list.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") choose(event);
      else if (event.key === "Home" || event.key === "End") this.onSelect(this.shown.at(event.key === "Home" ? 0 : -1));
      else return;
      event.preventDefault();
    });
  }

  add(item) {
    this.items.push(item);
    this.render();
  }

  clear() {
    for (const item of this.items) if (item.thumb) URL.revokeObjectURL(item.thumb);
    this.items = [];
    this.nodes.clear();
    this.current = null;
    this._render();
  }

  /**
   * The item `by` places, 1 or -1, further in the order shown; null at the ends. One that the filter has hidden
   * meanwhile, having got its verdict, counts as standing between those around it.
   */
  neighbour(by) {
    const at = this.shown.indexOf(this.current);
    if (at >= 0 || this.current === null) return this.shown[at + by] ?? null;
    const order = ORDERS[byId("sort").value];
    const after = this.shown.findIndex((item) => order(item, this.current) > 0);
    const next = after < 0 ? this.shown.length : after;
    return this.shown[by > 0 ? next : next - 1] ?? null;
  }

  /** Where the current one stands: [number from 1, how many are shown]; number 0 when the filter hides it. */
  place() {
    return [this.shown.indexOf(this.current) + 1, this.shown.length];
  }

  select(item) {
    this.current = item;
    const focused = this.list.contains(document.activeElement);
    this._render();
    const node = this.nodes.get(item.key);
    if (focused) node?.focus({ preventScroll: true });
    node?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  _render() {
    const text = byId("find").value.trim().toLowerCase();
    const passes = FILTERS[byId("show").value];
    this.shown = this.items.filter((item) => passes(item) && item.name.toLowerCase().includes(text));
    this.shown.sort(ORDERS[byId("sort").value]);
    const stop = this.shown.includes(this.current) ? this.current : this.shown[0];
    const nodes = this.shown.map((item) => this._node(item, item === stop));
    // Moved only when the order has changed: a node that is moved loses the focus.
    const same = nodes.length === this.list.children.length && nodes.every((node, i) => node === this.list.children[i]);
    if (!same) {
      const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
      this.list.replaceChildren(...nodes);
      if (focused?.isConnected) focused.focus({ preventScroll: true });
    }
    this._count();
  }

  _count() {
    const anomalous = this.items.filter(FILTERS.anomalous).length;
    const all = this.items.length;
    byId("visit-count").textContent = all ? `${whole(anomalous)} of ${whole(all)} anomalous` : "";
    byId("none-shown").hidden = !all || this.shown.length > 0;
    this.onRender();
  }

  _node(item, stop) {
    const node = this.nodes.get(item.key) ?? this._newNode(item);
    const state = decision(item);
    const verdict = item.verdict ? VERDICTS[item.verdict].label : "";
    const signature = [state, verdict, stop, item === this.current].join();
    if (node.dataset.signature === signature) return node;
    node.dataset.signature = signature;
    node.dataset.state = state;
    node.tabIndex = stop ? 0 : -1;
    node.setAttribute("aria-selected", String(item === this.current));
    node.querySelector(".mark").textContent = MARKS[state];
    node.querySelector(".verdict").textContent = verdict;
    // "name, anomalous, score 0.812, confirmed" rather than the bare pieces
    const words = [item.name, state === "scored" ? "" : state, `score ${fixed(item.score)}`, verdict.toLowerCase()];
    node.setAttribute("aria-label", words.filter(Boolean).join(", "));
    return node;
  }

  _newNode(item) {
    const short = item.name.split("/").pop();
    const picture = item.thumb
      ? make("img", { src: item.thumb, alt: "", draggable: "false", decoding: "async" })
      : make("span", { class: "no-thumb" }, "no preview");
    const node = make(
      "li",
      { role: "option", id: item.key, title: item.name },
      make("span", { class: "frame" }, picture, make("span", { class: "verdict" })),
      make("span", { class: "line" }, make("i", { class: "mark" }), make("b", {}, fixed(item.score))),
      make("span", { class: "name" }, ...fileName(short)),
    );
    this.nodes.set(item.key, node);
    return node;
  }
}
