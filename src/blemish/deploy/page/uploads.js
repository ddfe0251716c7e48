/** The queue of pictures on their way: a few at a time, with progress, waiting and cancelling. */

import { Refused, predict } from "./api.js";
import { bytes } from "./dom.js";

const AT_ONCE = 4; // the server gathers what comes together into one batch
const TICK = 500; // milliseconds

/**
 * fields(): form fields of the next request. maxBytes(): the server's limit, or null. onResult(entry, record),
 * onFailure(entry, message), onProgress({done, failed, total, rate, left, waiting, running}).
 */
export class Uploads {
  constructor({ fields, maxBytes, onResult, onFailure, onProgress }) {
    Object.assign(this, { fields, maxBytes, onResult, onFailure, onProgress });
    this.waiting = [];
    this.added = 0; // over the whole visit: the order in which pictures were given
    this.active = 0;
    this.pausedUntil = 0;
    this.ticking = false;
    this._reset();
  }

  get running() {
    return this.active > 0 || this.waiting.length > 0;
  }

  _reset() {
    this.done = this.failed = this.total = 0;
    this.began = performance.now();
    this.stopper = new AbortController();
  }

  /** entries: {file, name} each. */
  add(entries) {
    if (!this.running || this.stopper.signal.aborted) this._reset();
    for (const entry of entries) this.waiting.push({ ...entry, order: ++this.added });
    this.total += entries.length;
    this._tell();
    this._start();
  }

  /** Drop what waits and abort what is on its way; what is done stays. Returns how many were dropped. */
  cancel() {
    const dropped = this.waiting.length + this.active;
    this.waiting = [];
    this.stopper.abort();
    return dropped;
  }

  _start() {
    while (this.active < AT_ONCE && this.waiting.length) this._work();
  }

  async _work() {
    this.active++;
    const { signal } = this.stopper;
    while (this.waiting.length && !signal.aborted) await this._one(this.waiting.shift(), signal);
    this.active--;
    if (signal.aborted && this.waiting.length) this._start(); // given after the rest was cancelled
    this._tell();
  }

  async _one(entry, signal) {
    try {
      const limit = this.maxBytes();
      if (limit && entry.file.size > limit) {
        throw new Refused(`${bytes(entry.file.size)} are more than the ${bytes(limit)} this server takes`, 413);
      }
      if (!entry.file.size) throw new Refused("the file is empty (0 bytes)", 422);
      const onWait = (seconds) => this._pause(seconds);
      const record = await predict(entry.file, entry.name, this.fields(), { signal, onWait });
      await this.onResult(entry, record);
      if (signal.aborted) return;
      this.done++;
    } catch (error) {
      if (signal.aborted) return;
      this.failed++;
      const changed = error.name === "NotReadableError";
      const message = changed ? "the file cannot be read any more" : error.message;
      this.onFailure(entry, message.replace(`${entry.name}: `, ""));
    }
    if (!signal.aborted) this._tell();
  }

  _pause(seconds) {
    this.pausedUntil = Math.max(this.pausedUntil, performance.now() + 1000 * seconds);
    if (!this.ticking) this._tick();
  }

  /** Count the seconds of waiting down. */
  _tick() {
    this._tell();
    this.ticking = this.running && performance.now() < this.pausedUntil;
    if (this.ticking) setTimeout(() => this._tick(), TICK);
  }

  _tell() {
    const finished = this.done + this.failed;
    const seconds = (performance.now() - this.began) / 1000;
    const rate = finished && seconds > 0 ? finished / seconds : 0;
    const left = rate ? (this.total - finished) / rate : null;
    const waiting = Math.max(0, (this.pausedUntil - performance.now()) / 1000);
    const { done, failed, total, running } = this;
    this.onProgress({ done, failed, total, rate, left, waiting, running, cancelled: this.stopper.signal.aborted });
  }
}
