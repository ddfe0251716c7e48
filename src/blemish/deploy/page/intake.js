/** How pictures come in: dropped files and folders, the two pickers, the clipboard. */

import { byId } from "./dom.js";

const ENDINGS = /\.(png|jpe?g|bmp|webp|tiff?|gif)$/i;

/** A picture that came in. file: File or Blob. name: with its folders, as the server shall note it. */
const entry = (file, name) => ({ file, name });

const isPicture = ({ file, name }) => file.type.startsWith("image/") || ENDINGS.test(name);
const isHidden = ({ name }) => name.split("/").some((part) => part.startsWith("."));

/**
 * onPictures(entries, passedOver): called with what is taken, and with how many other files a folder held. Single
 * files are taken whatever they are called: the server says what is wrong with them.
 */
export function listen(onPictures) {
  const take = (found, fromFolder) => {
    const visible = found.filter((one) => !fromFolder || !isHidden(one));
    const taken = fromFolder ? visible.filter(isPicture) : visible;
    taken.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
    if (found.length) onPictures(taken, visible.length - taken.length);
  };
  for (const [button, picker] of [["pick-files", "files"], ["pick-folder", "folder"]]) {
    byId(button).addEventListener("click", () => byId(picker).click());
    byId(picker).addEventListener("change", (event) => {
      const found = [...event.target.files].map((file) => entry(file, file.webkitRelativePath || file.name));
      event.target.value = ""; // so that the same choice counts again
      take(found, picker === "folder");
    });
  }
  listenToDrops(take);
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    if (!files.length) return;
    event.preventDefault();
    take(files.map((file) => entry(file, pastedName(file))), false);
  });
}

/** Browsers call every picture of the clipboard "image.png". */
function pastedName(file) {
  return file.name && file.name !== "image.png" ? file.name : `pasted-${stamp()}.png`;
}

/** The time of day as part of a file name. */
export function stamp(time = new Date()) {
  const two = (number) => String(number).padStart(2, "0");
  const day = [time.getFullYear(), two(time.getMonth() + 1), two(time.getDate())].join("-");
  return `${day}-${[time.getHours(), time.getMinutes(), time.getSeconds()].map(two).join("")}`;
}

function listenToDrops(take) {
  let depth = 0; // entering a child element counts as leaving its parent
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const mark = (over) => document.body.classList.toggle("dropping", over);
  addEventListener("dragenter", (event) => {
    if (hasFiles(event)) mark(++depth > 0);
  });
  addEventListener("dragleave", (event) => {
    if (hasFiles(event)) mark(--depth > 0);
  });
  addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark((depth = 0) > 0);
    // Read before the first pause: the list of what was dropped does not outlive the event.
    const dropped = [...event.dataTransfer.items].filter((item) => item.kind === "file");
    const roots = dropped.map((item) => item.webkitGetAsEntry?.() ?? null);
    const plain = [...event.dataTransfer.files].filter((_, i) => !roots[i]?.isDirectory);
    const folders = roots.filter((root) => root?.isDirectory);
    take(plain.map((file) => entry(file, file.name)), false);
    for (const folder of folders) take(await walk(folder), true);
  });
}

/** Every file below a dropped folder, with its path from there. Unreadable ones are left out. */
async function walk(folder) {
  const found = [];
  const open = [folder];
  while (open.length) {
    const next = open.pop();
    if (next.isFile) {
      const file = await new Promise((resolve) => next.file(resolve, () => resolve(null)));
      if (file) found.push(entry(file, next.fullPath.replace(/^\//, "")));
      continue;
    }
    const reader = next.createReader();
    for (;;) {
      const batch = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
      if (!batch.length) break; // a reader gives a hundred at a time
      open.push(...batch);
    }
  }
  return found;
}
