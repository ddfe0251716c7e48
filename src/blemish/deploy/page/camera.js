/** Photos from a camera of this device. */

import { announce, byId, make } from "./dom.js";
import { stamp } from "./intake.js";

const CAUSES = {
  NotAllowedError: "The browser may not use the camera. Allow it in the site settings beside the address, then try again.",
  SecurityError: "The browser may not use the camera. Allow it in the site settings beside the address, then try again.",
  NotFoundError: "No camera was found on this device.",
  NotReadableError: "The camera is in use by another program. Close that one, then try again.",
  OverconstrainedError: "The chosen camera is gone. Choose another one.",
};
const INSECURE = "Browsers open cameras on https:// and localhost addresses only; this page came from another address.";

let stream = null;

/** onPhoto({file, name}): called for each photo taken; the dialog stays open for the next one. */
export function listen(onPhoto) {
  const dialog = byId("camera");
  byId("pick-camera").addEventListener("click", () => {
    dialog.showModal();
    start();
  });
  byId("camera-again").addEventListener("click", () => start());
  byId("camera-device").addEventListener("change", (event) => start(event.target.value));
  byId("camera-close").addEventListener("click", () => dialog.close());
  byId("camera-shoot").addEventListener("click", () => shoot(onPhoto));
  dialog.addEventListener("close", stop);
}

function stop() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  byId("camera-video").srcObject = null;
}

function say(text, failed = false) {
  byId("camera-status").textContent = text;
  byId("camera-shoot").disabled = stream === null;
  byId("camera-again").hidden = !failed;
  byId("camera-video").hidden = failed;
}

async function start(device) {
  stop();
  say("Opening the camera …");
  if (!navigator.mediaDevices?.getUserMedia) {
    say(INSECURE, true);
    return;
  }
  const wanted = device ? { deviceId: { exact: device } } : { facingMode: "environment" };
  try {
    const video = { ...wanted, width: { ideal: 1920 }, height: { ideal: 1080 } };
    const opened = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    if (!byId("camera").open) {
      for (const track of opened.getTracks()) track.stop(); // closed while the browser asked
      return;
    }
    stream = opened;
    byId("camera-video").srcObject = stream;
    await byId("camera-video").play();
    await listDevices();
    say("Ready.");
    byId("camera-shoot").focus();
  } catch (error) {
    stop();
    say(CAUSES[error.name] ?? `The camera cannot be opened: ${error.message}`, true);
  }
}

async function listDevices() {
  const devices = (await navigator.mediaDevices.enumerateDevices()).filter((one) => one.kind === "videoinput");
  const used = stream.getVideoTracks()[0]?.getSettings().deviceId;
  const select = byId("camera-device");
  select.replaceChildren(
    ...devices.map((one, i) => make("option", { value: one.deviceId, selected: one.deviceId === used }, one.label || `Camera ${i + 1}`)),
  );
  select.closest("label").hidden = devices.length < 2;
}

async function shoot(onPhoto) {
  const video = byId("camera-video");
  if (!video.videoWidth) return;
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  const file = await canvas.convertToBlob({ type: "image/png" }); // PNG: a score shall not depend on packing
  say("Photo taken.");
  announce("Photo taken");
  onPhoto({ file, name: `camera-${stamp()}.png` });
}
