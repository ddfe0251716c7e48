/** The inspection page: ties intake, queue, gallery, viewer, panel and history together. */

import { json, putVerdict, setTokenQuestion } from "./api.js";
import * as camera from "./camera.js";
import { announce, byId, csv, fileName, fixed, make, percent, perFrame, plural, save } from "./dom.js";
import { Gallery } from "./gallery.js";
import { History } from "./history.js";
import * as intake from "./intake.js";
import { listenToKeys } from "./keys.js";
import { maskOf } from "./maps.js";
import { Panel } from "./panel.js";
import { Uploads } from "./uploads.js";
import { Viewer } from "./viewer.js";
import * as visit from "./visit.js";

const ANNOUNCE_EACH = 10; // pictures of a batch between two spoken lines

let current = null;
let picture = null;
let limits = {};
let failures = [];
let first = 0; // number of the first picture of the last batch: it comes onto the stage
let visits = 0; // how often the visit was cleared

const viewer = new Viewer(byId("stage"), {
  onZoom: (zoom, fitted) => (byId("zoom").textContent = `${Math.round(100 * zoom)} %${fitted ? ", fitted" : ""}`),
  onPoint: (point) => (byId("point").textContent = point ? pointText(point) : ""),
});
const panel = new Panel({
  onThresholds: perFrame(applyThresholds),
  onOpacity: (share) => viewer.setOpacity(share),
  onVerdict: judge,
  onRegion: (box) => viewer.zoomToBox(box),
});
const gallery = new Gallery({ onSelect: select, onRender: showPlace });
const history = new History({ onOpen: openKept, onVerdict: noteVerdict });
const uploads = new Uploads({
  fields: () => ({ map: "tiff", threshold: visit.settings.threshold, pixel_threshold: visit.settings.pixelThreshold }),
  maxBytes: () => limits.max_bytes ?? null,
  onResult: addResult,
  onFailure: (entry, message) => {
    failures.push({ entry, message });
    showFailures();
  },
  onProgress: showProgress,
});

function pointText({ x, y, value }) {
  return `x ${x}, y ${y}${value === null ? "" : `, map value ${fixed(value)}`}`;
}

/* ---- pictures come in ---- */

function addPictures(entries, passedOver) {
  const note = passedOver ? `, ${plural(passedOver, "other file")} passed over` : "";
  if (!entries.length) {
    announce("No pictures found");
    showBanner(`No pictures there${note}.`, false);
    return;
  }
  showBanner("");
  showTab("inspect", false);
  byId("inspect").classList.remove("empty");
  if (!uploads.running) first = uploads.added + 1;
  announce(`${plural(entries.length, "picture")} added${note}`);
  uploads.add(entries);
}

async function addResult(entry, record) {
  const number = visits;
  const item = await visit.makeItem(entry, record);
  if (number !== visits) return;
  gallery.add(item);
  if (entry.order === first || current === null) select(item);
  else panel.show(current, gallery.items);
}

function showProgress({ done, failed, total, rate, left, waiting, running, cancelled }) {
  const finished = done + failed;
  byId("batch").hidden = !running || total < 2;
  if (running && waiting > 0) byId("batch").hidden = false;
  byId("batch-bar").value = total ? finished / total : 0;
  const speed = rate && finished > 2 ? `, ${rate.toFixed(1)} a second, ${secondsText(left)} left` : "";
  const busy = waiting > 0 ? `, the server is busy, goes on in ${Math.ceil(waiting)} s` : "";
  byId("batch-text").textContent = `${finished} of ${total}${busy || speed}`;
  byId("stage").setAttribute("aria-busy", String(running && current === null));
  showNote();
  if (cancelled) return;
  const outcome = `${done} of ${plural(total, "picture")} done${failed ? `, ${failed} failed` : ""}`;
  if (finished === total && !running && total > 1) announce(outcome);
  else if (finished && finished % ANNOUNCE_EACH === 0 && running) announce(outcome);
  if (!running && current === null && !gallery.items.length) byId("inspect").classList.toggle("empty", !failures.length);
}

const secondsText = (s) => (s < 90 ? `${Math.ceil(s)} s` : `${Math.round(s / 60)} min`);

function cancel() {
  const dropped = uploads.cancel();
  announce(`Cancelled, ${plural(dropped, "picture")} not inspected`);
  byId("pick-files").focus();
}

function showFailures() {
  byId("failures").hidden = !failures.length;
  byId("failures-title").textContent = `${plural(failures.length, "picture")} failed`;
  const line = ({ entry, message }) => make("li", {}, make("b", {}, entry.name), ` ${message}`);
  byId("failure-list").replaceChildren(...failures.map(line));
  if (failures.length) announce(`${failures.at(-1).entry.name} failed: ${failures.at(-1).message}`);
}

function takeFailures() {
  const taken = failures.map(({ entry }) => entry);
  failures = [];
  showFailures();
  byId("pick-files").focus();
  return taken;
}

/* ---- the picture on the stage ---- */

async function select(item) {
  const earlier = current;
  current = item;
  gallery.select(item);
  byId("name").replaceChildren(...fileName(item.name));
  byId("name").title = item.name;
  panel.show(item, gallery.items);
  if (earlier !== item) announce(sentence(item));
  const opened = await visit.pictureOf(item);
  if (current !== item) return; // the operator has gone on meanwhile
  picture = opened;
  viewer.show(picture, true);
  showNote();
  showMask();
}

function sentence(item) {
  const [number, count] = gallery.place();
  const state = visit.decision(item);
  const words = [number ? `${number} of ${count}` : "", item.name, state === "scored" ? "" : state, `score ${fixed(item.score)}`];
  return words.filter(Boolean).join(", ");
}

function showPlace() {
  const [number, count] = gallery.place();
  byId("place").textContent = number ? `${number} / ${count}` : "";
  // Not disabled, which would take the focus from a keyboard's user at either end.
  for (const [id, by] of [["previous", -1], ["next", 1]]) {
    byId(id).setAttribute("aria-disabled", String(gallery.neighbour(by) === null));
  }
}

function showNote() {
  const note = byId("stage-note");
  const waiting = uploads.running && current === null;
  const unseen = picture && !picture.photo ? "This browser cannot show this kind of file; here is its heat map alone." : "";
  const none = current === null && !uploads.running ? "No picture yet." : "";
  note.textContent = waiting ? "Inspecting …" : unseen || none || (current?.mapError ? `No heat map: ${current.mapError}.` : "");
  note.hidden = !note.textContent;
  byId("inspect").classList.toggle("waiting", current === null);
}

function showMask() {
  const threshold = visit.pixelThresholdFor(current);
  const found = picture?.map && threshold !== null ? maskOf(picture.map, threshold) : null;
  viewer.setOutline(found?.outline ?? null);
  panel.showMask(found, picture?.map?.factor);
  const area = found ? `, ${percent(found.share, 2)} of it above the pixel threshold` : "";
  byId("stage").querySelector(".overlay").setAttribute("aria-label", `${current?.name ?? ""}, photo with heat map${area}`);
  byId("stage").querySelector(".photo").setAttribute("aria-label", `${current?.name ?? ""}, photo`);
}

function applyThresholds() {
  gallery.render();
  panel.show(current, gallery.items);
  if (current) showMask();
}

function step(by) {
  const next = gallery.neighbour(by);
  if (next) select(next);
  else announce(by > 0 ? "This is the last picture" : "This is the first picture");
}

function showView(view) {
  viewer.setView(view);
  for (const button of document.querySelectorAll("button[data-view]")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === view));
  }
}

/* ---- verdicts ---- */

/** Store a verdict on the current picture; the same one again takes it back. */
async function judge(name) {
  const item = current;
  if (!item || item.saving) return;
  if (!visit.verdictsFor(item).includes(name)) {
    const called = item.recorded ? "anomalous" : "normal";
    const fitting = visit.verdictsFor(item).map((one) => visit.VERDICTS[one].label.toLowerCase());
    const text = `This picture was called ${called}: ${fitting.join(" or ")}?`;
    announce(text);
    byId("verdict-note").textContent = text;
    return;
  }
  const wanted = item.verdict === name ? null : name;
  const before = item.verdict;
  Object.assign(item, { verdict: wanted, verdictError: null, saving: item.id !== null });
  const show = () => {
    gallery.render();
    if (current === item) panel.show(item, gallery.items);
  };
  show();
  try {
    if (item.id !== null) await putVerdict(item.id, wanted);
    announce(wanted ? `Verdict: ${visit.VERDICTS[wanted].label}` : "Verdict taken back");
  } catch (error) {
    Object.assign(item, { verdict: before, verdictError: error.message });
    announce(`The verdict was not stored: ${error.message}`);
  }
  item.saving = false;
  show();
}

/** A verdict given in the history tab, on a picture that is in this visit too. */
function noteVerdict(row) {
  const item = gallery.items.find((one) => one.id === row.id);
  if (!item) return;
  item.verdict = row.verdict;
  gallery.render();
  if (item === current) panel.show(item, gallery.items);
}

async function openKept(row) {
  try {
    const known = gallery.items.find((one) => one.id === row.id);
    const item = known ?? (await visit.keptItem(row));
    if (!known) gallery.add(item);
    byId("inspect").classList.remove("empty");
    showTab("inspect", true);
    select(item);
  } catch (error) {
    byId("history-status").textContent = `${row.name} cannot be shown: ${error.message}`;
  }
}

/* ---- this visit as a whole ---- */

function saveVisit() {
  const head = ["name", "inspection", "score", "threshold", "decision", "pixel_threshold", "map_max", "verdict", "width", "height", "sha256", "error"];
  const row = (item) => [item.name, item.id, item.score, visit.thresholdFor(item), visit.decision(item), visit.pixelThresholdFor(item), item.mapMax, item.verdict, item.width, item.height, item.sha256, null];
  const failed = failures.map(({ entry, message }) => [entry.name, ...Array(10).fill(null), message]);
  save(csv([head, ...gallery.items.map(row), ...failed]), `inspections-${intake.stamp()}.csv`);
}

function clearVisit() {
  uploads.cancel();
  visits++;
  current = picture = null;
  gallery.clear();
  viewer.show(null);
  takeFailures();
  byId("inspect").classList.add("empty");
  byId("pick-files").focus();
  announce("Cleared");
}

/* ---- tabs, theme, dialogs ---- */

function showTab(name, focus) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !chosen;
    if (chosen && focus) tab.focus();
  }
}

function openTab(name) {
  showTab(name, true);
  if (name === "history") history.open();
}

function showBanner(text, again = true) {
  byId("banner").hidden = !text;
  byId("banner-text").textContent = text;
  byId("banner-again").hidden = !again;
}

/** The token, or null when the operator cancels. again: the one given before was refused. */
function askForToken(again) {
  const dialog = byId("token");
  byId("token-title").textContent = again ? "The server refused this token" : "This server wants a token";
  byId("token-value").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "use" ? byId("token-value").value.trim() : null), { once: true });
  });
}

async function connect() {
  try {
    const about = await json("v1/methods");
    visit.settings.model = about.loaded ?? {};
    limits = about.limits ?? {};
    history.enabled = about.history !== false;
    const { method, backbone, image_size: side, precision, runtime } = visit.settings.model;
    byId("model").textContent = [method, backbone, side && `${side} px`, precision, runtime].filter(Boolean).join(" · ");
    showBanner("");
    panel.show(current, gallery.items);
    if (current) showMask();
  } catch (error) {
    showBanner(`Not connected: ${error.message}.`);
  }
}

function listen() {
  const on = (id, action) => byId(id).addEventListener("click", action);
  on("banner-again", connect);
  on("batch-cancel", cancel);
  on("failures-again", () => addPictures(takeFailures(), 0));
  on("failures-clear", takeFailures);
  on("visit-csv", saveVisit);
  on("visit-clear", clearVisit);
  on("visit-more", () => {
    const open = document.querySelector(".visit").classList.toggle("open");
    byId("visit-more").setAttribute("aria-expanded", String(open));
  });
  on("previous", () => step(-1));
  on("next", () => step(1));
  on("zoom-in", () => viewer.zoomBy(1.5));
  on("zoom-out", () => viewer.zoomBy(1 / 1.5));
  on("zoom-fit", () => viewer.fit());
  on("open-help", () => byId("help").showModal());
  on("help-close", () => byId("help").close());
  for (const button of document.querySelectorAll("button[data-view]")) {
    button.addEventListener("click", () => showView(button.dataset.view));
  }
  const tabs = ["inspect", "history"];
  for (const name of tabs) {
    on(`tab-${name}`, () => openTab(name));
    byId(`tab-${name}`).addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      openTab(tabs.find((other) => other !== name));
      event.stopPropagation();
    });
  }
  byId("theme").value = document.documentElement.dataset.themeChoice;
  byId("theme").addEventListener("change", (event) => dispatchEvent(new CustomEvent("theme", { detail: event.target.value })));
  addEventListener("beforeunload", (event) => {
    if (uploads.running) event.preventDefault();
  });
}

setTokenQuestion(askForToken);
intake.listen(addPictures);
camera.listen((entry) => {
  first = uploads.added + 1; // whatever else is on its way
  addPictures([entry], 0);
});
listenToKeys({ step, judge, viewer, showView, panel, busy: () => byId("inspect").hidden });
listen();
showNote();
connect();
