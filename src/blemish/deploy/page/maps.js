/** Anomaly maps: from the server's bytes to numbers, and from numbers and a pixel threshold to a mask. */

/** Pixels that the page works on; larger maps are made smaller. Phones have little memory for canvases. */
export const MAX_PIXELS = 4 << 20;

/** The bytes of a base64 text. */
export function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const found = new Uint8Array(binary.length);
  for (let i = 0; i < found.length; i++) found[i] = binary.charCodeAt(i);
  return found;
}

const SIZES = { 1: 1, 3: 2, 4: 4, 16: 8 }; // TIFF field type -> bytes: BYTE, SHORT, LONG, LONG8

/**
 * One page of float32 from a TIFF that is not packed (blemish/output/tables.py: write_map).
 *
 * bytes: Uint8Array. Returns {values: Float32Array, width, height}. Throws an Error with one line.
 */
export function readTiff(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const order = bytes.length < 8 ? "" : String.fromCharCode(bytes[0], bytes[1]);
  const little = order === "II";
  if ((!little && order !== "MM") || view.getUint16(2, little) !== 42) throw new Error("the map is no TIFF");
  const tags = readTags(view, view.getUint32(4, little), little);
  const one = (tag, missing) => (tags.get(tag) ?? [missing])[0];
  const [width, height] = [one(256), one(257)];
  const fits = one(258, 1) === 32 && one(259, 1) === 1 && one(277, 1) === 1 && one(339, 1) === 3;
  if (!width || !height || !fits) throw new Error("the map is no unpacked float32 TIFF of one channel");
  const offsets = tags.get(273) ?? [];
  const counts = tags.get(279) ?? [];
  const values = new Float32Array(width * height);
  const target = new Uint8Array(values.buffer);
  let filled = 0;
  offsets.forEach((offset, strip) => {
    const part = bytes.subarray(offset, offset + counts[strip]);
    target.set(part.subarray(0, target.length - filled), filled);
    filled += part.length;
  });
  if (filled < target.length) throw new Error("the map is cut off");
  if (!little) swap(target);
  return { values, width, height };
}

function readTags(view, start, little) {
  const tags = new Map();
  const count = view.getUint16(start, little);
  for (let entry = 0; entry < count; entry++) {
    const at = start + 2 + 12 * entry;
    const size = SIZES[view.getUint16(at + 2, little)];
    const length = view.getUint32(at + 4, little);
    if (!size || length > 1e6) continue; // texts and fractions say nothing that is needed
    const from = size * length <= 4 ? at + 8 : view.getUint32(at + 8, little);
    const number = (i) => {
      if (size === 1) return view.getUint8(from + i);
      if (size === 2) return view.getUint16(from + 2 * i, little);
      return size === 4 ? view.getUint32(from + 4 * i, little) : Number(view.getBigUint64(from + 8 * i, little));
    };
    tags.set(view.getUint16(at, little), Array.from({ length }, (_, i) => number(i)));
  }
  return tags;
}

/** Big-endian floats to this machine's order (every browser's machine is little-endian). */
function swap(target) {
  const view = new DataView(target.buffer);
  for (let i = 0; i < target.length; i += 4) view.setUint32(i, view.getUint32(i, false), true);
}

/**
 * A map of at most `limit` pixels: blocks of factor x factor values give their largest, so that no region gets lost.
 *
 * Returns {values, width, height, factor}; factor 1 is the map itself.
 */
export function reduced(map, limit = MAX_PIXELS) {
  const factor = Math.ceil(Math.sqrt((map.width * map.height) / limit));
  if (factor <= 1) return { ...map, factor: 1 };
  const width = Math.ceil(map.width / factor);
  const height = Math.ceil(map.height / factor);
  const values = new Float32Array(width * height).fill(-Infinity);
  for (let y = 0; y < map.height; y++) {
    const row = Math.floor(y / factor) * width;
    for (let x = 0; x < map.width; x++) {
      const at = row + Math.floor(x / factor);
      const value = map.values[y * map.width + x];
      if (value > values[at]) values[at] = value;
    }
  }
  return { values, width, height, factor };
}

/**
 * What lies above a pixel threshold.
 *
 * Returns {count, share, regions, outline}: pixels of the map, their share of it, connected regions
 * (8-neighbourhood, highest peak first: {box: [x0, y0, x1, y1], area, peak}), and a Path2D around the mask. All
 * in pixels of the map given. The comparison is the library's: map > float32(threshold).
 */
export function maskOf(map, threshold) {
  const { values, width, height } = map;
  const limit = Math.fround(threshold);
  const mask = new Uint8Array(width * height);
  let count = 0;
  for (let i = 0; i < mask.length; i++) if (values[i] > limit) count += mask[i] = 1;
  const outline = outlineOf(mask, width, height);
  return { count, share: count / mask.length, outline, regions: regionsOf(mask, map) };
}

/** The edges between pixels inside and outside, straight runs as one line each. */
function outlineOf(mask, width, height) {
  const path = new Path2D();
  const open = new Int32Array(width + 1).fill(-1); // per column: where a vertical edge began
  for (let y = 0; y <= height; y++) {
    let run = -1;
    let left = 0;
    for (let x = 0; x <= width; x++) {
      const inside = x < width && y < height ? mask[y * width + x] : 0;
      const above = x < width && y > 0 ? mask[(y - 1) * width + x] : 0;
      if (inside !== above) {
        if (run < 0) run = x;
      } else if (run >= 0) {
        path.moveTo(run, y);
        path.lineTo(x, y);
        run = -1;
      }
      if (inside !== left) {
        if (open[x] < 0) open[x] = y;
      } else if (open[x] >= 0) {
        path.moveTo(x, open[x]);
        path.lineTo(x, y);
        open[x] = -1;
      }
      left = inside;
    }
  }
  return path;
}

/** Connected regions by flooding; empties `mask`. */
function regionsOf(mask, { values, width, height }) {
  const found = [];
  const stack = [];
  for (let seed = 0; seed < mask.length; seed++) {
    if (!mask[seed]) continue;
    const region = { box: [width, height, 0, 0], area: 0, peak: -Infinity };
    const box = region.box;
    mask[seed] = 0;
    stack.push(seed);
    while (stack.length) {
      const at = stack.pop();
      const x = at % width;
      const y = (at - x) / width;
      region.area++;
      if (values[at] > region.peak) region.peak = values[at];
      if (x < box[0]) box[0] = x;
      if (y < box[1]) box[1] = y;
      if (x >= box[2]) box[2] = x + 1;
      if (y >= box[3]) box[3] = y + 1;
      for (let ny = Math.max(0, y - 1); ny <= Math.min(height - 1, y + 1); ny++) {
        for (let nx = Math.max(0, x - 1); nx <= Math.min(width - 1, x + 1); nx++) {
          const next = ny * width + nx;
          if (mask[next]) {
            mask[next] = 0;
            stack.push(next);
          }
        }
      }
    }
    found.push(region);
  }
  return found.sort((a, b) => b.peak - a.peak);
}
