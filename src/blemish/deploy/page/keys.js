/** The keyboard of the inspection tab. */

import { byId } from "./dom.js";
import { USUAL_OPACITY } from "./colors.js";
import { VERDICTS } from "./visit.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const VIEWS = { 1: "overlay", 2: "both", 3: "photo" };
const STEP = 0.15; // of the pane

/** Whether the focused element wants this key for itself. */
function isTaken(event) {
  const target = event.target;
  if (target.closest("dialog[open]") || document.querySelector("dialog[open]")) return true;
  if (target.matches("select, textarea") || target.isContentEditable) return true;
  if (target.matches("input[type=range]")) return event.key.startsWith("Arrow");
  return target.matches("input:not([type=checkbox])");
}

/** Letters can be switched off for those whose voice or other input types them unasked. */
function lettersWork() {
  return byId("letters").checked;
}

function keepLetters() {
  const box = byId("letters");
  try {
    box.checked = localStorage.getItem("blemish-letters") !== "off";
    box.addEventListener("change", () => localStorage.setItem("blemish-letters", box.checked ? "on" : "off"));
  } catch {
    // storage is switched off: the choice lasts as long as the page
  }
}

/** step(by), judge(verdict), showView(name); busy(): another tab is open. */
export function listenToKeys({ step, judge, viewer, showView, panel, busy }) {
  keepLetters();
  const opacity = () => panel.setOpacity(panel.opacity > 0 ? 0 : USUAL_OPACITY);
  const letters = { j: () => step(1), k: () => step(-1), o: opacity };
  for (const [name, { key }] of Object.entries(VERDICTS)) letters[key] = () => judge(name);
  const others = { "+": () => viewer.zoomBy(1.5), "=": () => viewer.zoomBy(1.5), "-": () => viewer.zoomBy(1 / 1.5), 0: () => viewer.fit() };
  for (const [key, view] of Object.entries(VIEWS)) others[key] = () => showView(view);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || isTaken(event)) return;
    const action = find(event);
    if (!action) return;
    event.preventDefault();
    action();
  });

  function find(event) {
    if (event.key === "?") return lettersWork() ? () => byId("help").showModal() : null;
    if (busy()) return null;
    const arrow = ARROWS[event.key];
    if (arrow && event.shiftKey) return () => viewer.panBy(arrow[0] * STEP, arrow[1] * STEP);
    if (arrow) return arrowStep(event, arrow);
    if (event.repeat && VERDICT_KEYS.has(event.key)) return null; // a key held down is no second verdict
    return lettersWork() ? (letters[event.key.toLowerCase()] ?? others[event.key]) : null;
  }

  /** Up and down scroll the page, except in the gallery, where they choose. */
  function arrowStep(event, [right, down]) {
    if (right) return () => step(right);
    return event.target.closest("#thumbs") ? () => step(down) : null;
  }
}

const VERDICT_KEYS = new Set(Object.values(VERDICTS).map(({ key }) => key));
