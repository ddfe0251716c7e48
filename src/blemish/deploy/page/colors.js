/**
 * The fixed colour scale of anomaly maps: the same colours and the same covering as the overlays that
 * `blemish predict` writes (blemish/output/pictures.py makes the table; a test compares).
 */

const TABLE =
  "0c07250d07270d08280e08290f082b10092c11092e11092f120a30130a32140a33150b35160b36170c38180c39180c3b190d3c1a0d3d" +
  "1b0d3f1c0e401d0e421e0e431f0e45200f46210f48220f4923104b24104c25104d26114f2711502811522911532a12552b12562c1258" +
  "2d13592e135b30135c31135e32145f3314613414623514633615653815663915683a15693b156b3c166c3d166e3f166f401671411672" +
  "4217734417754517764717774817784a17784c18794e187950187a52187a54187b56187b57187c59197c5b197d5d197d5f197d61197e" +
  "63197e65197e67197e69197e6b197f6d197f6f197f71197f73197f75197f77197f79197f7b1a7f7d1a7f7f1a7f81197f83197e85197e" +
  "87197e89197e8b197d8d197d8f197d91197c93197c95197b97197b99197a9b197a9d19799f1979a11978a31978a51977a71976a91975" +
  "ab1975ad1974af1973b11972b31971b51970b7196fb8196eba1b6ebb1c6dbd1d6cbe1f6cc0206bc1226ac32369c42468c62668c72767" +
  "c82866ca2a65cb2b64cd2c64ce2e63cf2f62d13061d23260d3335fd5355ed6365dd7375cd8395cda3a5bdb3b5adc3d59dd3e58df4057" +
  "e04156e14355e24454e34553e44752e64851e74a50e84b4ee94d4dea4e4ceb504bec514aed5349ee5448ef5647f05745f15944f25a43" +
  "f35c42f45d40f55f3ff6603ef6623df7643cf8653af86739f96938fa6b37fa6c36fb6e35fb7034fc7233fd7332fd7531fe7730fe792f" +
  "ff7a2eff7c2dff7e2eff802eff822fff842fff8630ff8831ff8a32ff8c33ff8e33ff9034ff9235ff9436ff9637ff9838ff9939ff9b3b" +
  "ff9d3cff9f3dffa13effa23fffa440ffa641ffa843ffa944ffab45ffad46ffae48ffb049ffb24affb34cffb54dffb74fffb850ffba52" +
  "ffbc53ffbd55ffbf56ffc058ffc25affc45bffc55dffc75effc860ffca61ffcb63ffcd64ffce66ffd067ffd169ffd36affd56cffd66d" +
  "ffd86fffd970ffdb72ffdc73ffde75ffdf76ffe179ffe27bfee47efee580fee783fee885feea88fdeb8afded8dfdee8ffdef92fdf194" +
  "fdf296fdf499fdf59bfcf79e";

/** Opacity at which the page shows what `blemish predict` saves. */
export const USUAL_OPACITY = 0.78;

/** Uint8Array of 256 x (red, green, blue), lowest value first. */
export const colors = Uint8Array.from(TABLE.match(/../g), (pair) => parseInt(pair, 16));

/** Low values are dark colours: as a tint they would only dirty the photo, so they fade in softly. */
const cover = (unit) => unit ** 0.75 * Math.min(1, 4 * unit);

/** Uint32Array of 256 pixels as an ImageData holds them, covering at full opacity or not at all see-through. */
function pixels(seeThrough) {
  const table = new Uint8ClampedArray(4 * 256);
  for (let index = 0; index < 256; index++) {
    table.set(colors.subarray(3 * index, 3 * index + 3), 4 * index);
    table[4 * index + 3] = seeThrough ? Math.round(255 * cover(index / 255)) : 255;
  }
  return new Uint32Array(table.buffer);
}

const heat = pixels(true);
const solid = pixels(false);

/** A canvas of the map's size in the colours of the scale. range: [low, high], the method's. */
export function heatCanvas(map, [low, high]) {
  const canvas = new OffscreenCanvas(map.width, map.height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(map.width, map.height);
  const out = new Uint32Array(image.data.buffer);
  const scale = 255 / (high - low);
  const values = map.values;
  for (let i = 0; i < out.length; i++) {
    const index = Math.round((values[i] - low) * scale);
    out[i] = heat[index < 0 ? 0 : index > 255 ? 255 : index];
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Paint the whole scale from left to right onto a canvas element. */
export function drawColorBar(canvas) {
  canvas.width = 256;
  canvas.height = 1;
  const context = canvas.getContext("2d");
  const image = context.createImageData(256, 1);
  new Uint32Array(image.data.buffer).set(solid);
  context.putImageData(image, 0, 0);
}
