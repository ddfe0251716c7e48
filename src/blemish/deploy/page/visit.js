/** The pictures of this visit: what is known of each, and the decision at the present thresholds. */

import { fromBase64, readTiff, reduced } from "./maps.js";
import { heatCanvas, USUAL_OPACITY } from "./colors.js";
import { request } from "./api.js";

const THUMB = { width: 168, height: 126 };
const KEPT_OPEN = 6; // pictures ready to be shown again at once
const MAX_PHOTO = 16e6; // pixels of a photo on the stage; phones have little memory for canvases

/** Words of the verdicts that the server takes, by whether the picture was called anomalous. */
export const VERDICTS = {
  confirmed: { label: "Confirmed", action: "Confirm", key: "c", called: true },
  false_alarm: { label: "False alarm", action: "False alarm", key: "f", called: true },
  missed: { label: "Missed", action: "Missed", key: "m", called: false },
  correct: { label: "Good", action: "Good", key: "g", called: false },
};

/** The operator's own thresholds; null is the server's. model: `loaded` of /v1/methods, {} until it is there. */
export const settings = { threshold: null, pixelThreshold: null, model: {} };

export const thresholdFor = (item) => settings.threshold ?? settings.model.threshold ?? item?.threshold ?? null;

export const pixelThresholdFor = (item) =>
  settings.pixelThreshold ?? settings.model.pixel_threshold ?? item?.pixelThreshold ?? null;

/** "anomalous", "normal", or "scored" without a threshold. */
export function decision(item) {
  const threshold = thresholdFor(item);
  if (threshold === null) return "scored";
  return item.score >= threshold ? "anomalous" : "normal";
}

/** Verdicts that fit what was recorded: all of them where nothing was decided. */
export function verdictsFor(item) {
  return Object.keys(VERDICTS).filter((name) => item.recorded === null || VERDICTS[name].called === item.recorded);
}

let count = 0;

/**
 * An item from the server's record of a picture and the picture itself. Reads the map, makes the thumbnail.
 *
 * order: place among the pictures given; without one it comes last.
 * mapBytes: the map, where it is not in the record.
 */
export async function makeItem({ file, name, order }, record, mapBytes = null) {
  const item = {
    key: `item-${++count}`,
    order: order ?? Infinity,
    name: record.name ?? name,
    file,
    id: record.id ?? null,
    sha256: record.sha256,
    width: record.width,
    height: record.height,
    score: record.score,
    threshold: record.threshold ?? null,
    recorded: record.is_anomalous ?? null,
    pixelThreshold: record.pixel_threshold ?? null,
    mapRange: record.map_range,
    mapMax: record.map_max,
    seconds: record.seconds,
    verdict: record.verdict ?? null,
    mapBlob: null,
    mapError: null,
    thumb: null,
  };
  addMap(item, mapBytes ?? (record.map ? fromBase64(record.map) : null));
  item.thumb = await thumbnail(item).catch(() => null);
  return item;
}

/**
 * Maps are kept as blobs, which browsers may move to disk: a visit of a thousand pictures would fill the memory.
 */
function addMap(item, bytes) {
  try {
    if (!bytes) throw new Error("the server sent no map");
    const map = reduced(readTiff(bytes));
    item.mapSize = { width: map.width, height: map.height, factor: map.factor };
    item.mapBlob = new Blob([map.values]);
  } catch (error) {
    item.mapError = error.message;
  }
}

async function mapOf(item) {
  if (!item.mapBlob) return null;
  return { values: new Float32Array(await item.mapBlob.arrayBuffer()), ...item.mapSize };
}

/** The photo, upright as the library sees it; null where this browser cannot show the file (TIFF, mostly). */
async function photoOf(item, width, height) {
  try {
    const options = { resizeQuality: "high", imageOrientation: "from-image" };
    if (width < item.width) Object.assign(options, { resizeWidth: width, resizeHeight: height });
    return await createImageBitmap(item.file, options);
  } catch {
    return null;
  }
}

const opened = new Map();

/** What the viewer shows: {photo, heat, map, width, height}. The last few stay ready. */
export async function pictureOf(item) {
  const ready = opened.get(item.key);
  opened.delete(item.key);
  const picture = ready ?? (await openPicture(item));
  opened.set(item.key, picture);
  for (const [key, old] of opened) {
    if (opened.size <= KEPT_OPEN) break;
    opened.delete(key);
    old.photo?.close();
  }
  return picture;
}

async function openPicture(item) {
  const shrink = Math.min(1, Math.sqrt(MAX_PHOTO / (item.width * item.height)));
  const size = [Math.max(1, Math.round(item.width * shrink)), Math.max(1, Math.round(item.height * shrink))];
  const [photo, map] = await Promise.all([photoOf(item, ...size), mapOf(item)]);
  return { photo, map, heat: map && heatCanvas(map, item.mapRange), width: item.width, height: item.height };
}

/** Photo and heat map as a small JPEG, its address; the thumbnail shows the whole picture. */
async function thumbnail(item) {
  const scale = Math.min(THUMB.width / item.width, THUMB.height / item.height, 1);
  const [width, height] = [Math.max(1, Math.round(item.width * scale)), Math.max(1, Math.round(item.height * scale))];
  const [photo, map] = await Promise.all([photoOf(item, width, height), mapOf(item)]);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.fillStyle = "#77737f";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  if (photo) context.drawImage(photo, 0, 0, width, height);
  photo?.close();
  context.globalAlpha = USUAL_OPACITY;
  if (map) context.drawImage(heatCanvas(map, item.mapRange), 0, 0, width, height);
  return URL.createObjectURL(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.82 }));
}

/** An inspection of the history whose picture and map the server has kept, as an item. Throws Refused. */
export async function keptItem(row) {
  const path = `v1/history/${encodeURIComponent(row.id)}`;
  const file = await (await request(`${path}/image`)).blob();
  const map = await (await request(`${path}/map?format=tiff`)).arrayBuffer();
  return makeItem({ file, name: row.name }, row, new Uint8Array(map));
}
