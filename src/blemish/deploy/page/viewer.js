/** The stage: photo and heat map on canvases that share one zoom and one position. */

import { perFrame } from "./dom.js";

const MOST_ZOOM = 32; // screen pixels per picture pixel
const SHARP_FROM = 3; // from here on, single pixels are shown as squares

/**
 * stage: element that holds two <canvas>, `photo` and `overlay`; its data-view says which are seen ("overlay",
 * "both", "photo"). onZoom(zoom, fitted), onPoint({x, y, value} or null): for the texts beside it.
 */
export class Viewer {
  constructor(stage, { onZoom, onPoint }) {
    this.stage = stage;
    this.canvases = { photo: stage.querySelector("canvas.photo"), overlay: stage.querySelector("canvas.overlay") };
    this.onZoom = onZoom;
    this.onPoint = onPoint;
    this.picture = null;
    this.outline = null;
    this.opacity = 1;
    this.pointer = null;
    this.fitted = true;
    this.zoom = 1;
    this.center = [0, 0]; // picture coordinates in the middle of each pane
    this.redraw = perFrame(() => this._draw());
    new ResizeObserver(() => this._resized()).observe(stage);
    for (const canvas of Object.values(this.canvases)) this._listen(canvas);
  }

  /**
   * picture: {photo: ImageBitmap or null, heat: canvas or null, map, width, height}, or null for none. keep: leave
   * zoom and position, for pictures of one camera.
   */
  show(picture, keep = false) {
    const same = keep && this.picture && picture;
    const stays = same && this.picture.width === picture.width && this.picture.height === picture.height;
    this.picture = picture;
    this.outline = null;
    if (picture) this.stage.style.setProperty("--aspect", picture.width / picture.height); // where the page scrolls
    if (!stays) this.fitted = true;
    this._resized();
  }

  setOutline(path) {
    this.outline = path;
    this.redraw();
  }

  setOpacity(opacity) {
    this.opacity = opacity;
    this.redraw();
  }

  setView(view) {
    this.stage.dataset.view = view;
    this._resized();
  }

  fit() {
    this.fitted = true;
    this._resized();
  }

  /** One picture pixel per pixel of the page. */
  actual() {
    this._zoomTo(1, ...this._middle());
  }

  zoomBy(factor, x = this._middle()[0], y = this._middle()[1]) {
    this._zoomTo(this.zoom * factor, x, y);
  }

  /** Move what is seen by a share of the pane. */
  panBy(right, down) {
    if (!this.picture) return;
    const [width, height] = this._pane();
    this.fitted = false;
    this._moveTo(this.center[0] + (right * width) / this.zoom, this.center[1] + (down * height) / this.zoom);
  }

  /** Bring a box of the picture into the middle, with some surroundings. */
  zoomToBox([x0, y0, x1, y1]) {
    const [width, height] = this._pane();
    this.fitted = false;
    this.zoom = this._bounded(Math.min(width / (3 * (x1 - x0)), height / (3 * (y1 - y0)), 8));
    this._moveTo((x0 + x1) / 2, (y0 + y1) / 2);
  }

  /** (width, height) of a pane in pixels of the page; both panes are of one size. */
  _pane() {
    const seen = this.stage.dataset.view === "photo" ? this.canvases.photo : this.canvases.overlay;
    return [Math.max(1, seen.clientWidth), Math.max(1, seen.clientHeight)];
  }

  _middle() {
    const [width, height] = this._pane();
    return [width / 2, height / 2];
  }

  _fitZoom() {
    const [width, height] = this._pane();
    return Math.min(width / this.picture.width, height / this.picture.height, 4);
  }

  _bounded(zoom) {
    return Math.min(MOST_ZOOM, Math.max(this._fitZoom(), zoom));
  }

  _resized() {
    if (this.picture && this.fitted) {
      this.zoom = this._fitZoom();
      this.center = [this.picture.width / 2, this.picture.height / 2];
    }
    if (this.picture) this._moveTo(...this.center);
    this.redraw();
  }

  /** Zoom so that the point at (x, y) of a pane stays where it is. */
  _zoomTo(wanted, x, y) {
    if (!this.picture) return;
    const zoom = this._bounded(wanted);
    const [mx, my] = this._middle();
    const at = [this.center[0] + (x - mx) / this.zoom, this.center[1] + (y - my) / this.zoom];
    this.zoom = zoom;
    this.fitted = zoom <= this._fitZoom() * 1.001;
    this._moveTo(at[0] - (x - mx) / zoom, at[1] - (y - my) / zoom);
  }

  /** Put a point of the picture into the middle, as far as the picture reaches. */
  _moveTo(x, y) {
    const [width, height] = this._pane();
    const keep = (value, size, seen) => (seen >= size ? size / 2 : Math.min(size - seen / 2, Math.max(seen / 2, value)));
    this.center = [
      keep(x, this.picture.width, width / this.zoom),
      keep(y, this.picture.height, height / this.zoom),
    ];
    // Fitted, a finger may still scroll the page over the picture; zoomed in, it moves the picture.
    this.stage.dataset.zoomed = String(!this.fitted);
    this.onZoom(this.zoom, this.fitted);
    this.redraw();
  }

  _draw() {
    for (const [kind, canvas] of Object.entries(this.canvases)) {
      if (canvas.clientWidth) this._drawPane(canvas, kind === "overlay");
    }
  }

  _drawPane(canvas, withHeat) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    const picture = this.picture;
    if (!picture) return;
    const zoom = this.zoom * ratio;
    context.setTransform(zoom, 0, 0, zoom, width / 2 - this.center[0] * zoom, height / 2 - this.center[1] * zoom);
    context.imageSmoothingEnabled = this.zoom < SHARP_FROM;
    context.imageSmoothingQuality = "high";
    if (picture.photo) context.drawImage(picture.photo, 0, 0, picture.width, picture.height);
    if (withHeat && picture.heat) this._drawHeat(context, picture, zoom);
    if (this.pointer) this._drawCross(context, zoom);
  }

  _drawHeat(context, picture, zoom) {
    context.globalAlpha = this.opacity;
    context.drawImage(picture.heat, 0, 0, picture.width, picture.height);
    context.globalAlpha = 1;
    if (!this.outline) return;
    const scale = picture.map.factor;
    context.save();
    context.beginPath();
    context.rect(0, 0, picture.width, picture.height);
    context.clip();
    context.scale(scale, scale);
    const ratio = window.devicePixelRatio || 1;
    for (const [color, thickness] of [["#100c18", 4], ["#fff", 1.75]]) {
      context.strokeStyle = color;
      context.lineWidth = (thickness * ratio) / (zoom * scale);
      context.lineCap = "square";
      context.stroke(this.outline);
    }
    context.restore();
  }

  /** The place under the pointer, in both panes. */
  _drawCross(context, zoom) {
    const { x, y } = this.pointer;
    const reach = 9 / this.zoom;
    for (const [color, thickness] of [["#000", 3], ["#fff", 1]]) {
      context.strokeStyle = color;
      context.lineWidth = (thickness * (window.devicePixelRatio || 1)) / zoom;
      context.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(x + (dx * reach) / 3, y + (dy * reach) / 3);
        context.lineTo(x + dx * reach, y + dy * reach);
      }
      context.stroke();
    }
  }

  _point(canvas, event) {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const at = [this.center[0] + (x - box.width / 2) / this.zoom, this.center[1] + (y - box.height / 2) / this.zoom];
    return { x, y, at };
  }

  _hover(canvas, event) {
    const picture = this.picture;
    const [x, y] = picture && event ? this._point(canvas, event).at : [-1, -1];
    const within = picture && x >= 0 && y >= 0 && x < picture.width && y < picture.height;
    const both = this.stage.dataset.view === "both";
    this.pointer = within && both ? { x, y } : null;
    if (!within) this.onPoint(null);
    else {
      const [column, row] = [Math.floor(x), Math.floor(y)];
      const map = picture.map;
      const at = map && Math.floor(row / map.factor) * map.width + Math.floor(column / map.factor);
      this.onPoint({ x: column, y: row, value: map ? map.values[at] : null });
    }
    if (both) this.redraw();
  }

  _listen(canvas) {
    const fingers = new Map();
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (!this.picture || (this.fitted && event.deltaY > 0 && !event.ctrlKey)) return; // the page may scroll
        event.preventDefault();
        const { x, y } = this._point(canvas, event);
        const notch = event.deltaMode === 1 ? 33 : 1;
        this.zoomBy(Math.exp(-Math.max(-120, Math.min(120, event.deltaY * notch)) / (event.ctrlKey ? 100 : 360)), x, y);
      },
      { passive: false },
    );
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.picture) return;
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, this._point(canvas, event));
      this.stage.dataset.moving = "true";
    });
    canvas.addEventListener("pointermove", (event) => this._moved(canvas, fingers, event));
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => {
        fingers.delete(event.pointerId);
        if (!fingers.size) this.stage.dataset.moving = "false";
      });
    }
    canvas.addEventListener("pointerleave", () => this._hover(canvas, null));
    canvas.addEventListener("dblclick", (event) => {
      const { x, y } = this._point(canvas, event);
      if (this.fitted) this._zoomTo(Math.max(2 * this.zoom, 1), x, y);
      else this.fit();
    });
  }

  _moved(canvas, fingers, event) {
    const before = fingers.get(event.pointerId);
    if (!before) {
      this._hover(canvas, event);
      return;
    }
    const now = this._point(canvas, event);
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    fingers.set(event.pointerId, now);
    if (other) {
      const spread = (a) => Math.max(1, Math.hypot(a.x - other.x, a.y - other.y));
      this.zoomBy(spread(now) / spread(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
    }
    if (this.fitted) return;
    const share = other ? 2 : 1; // two fingers that move together both report
    const [dx, dy] = [(now.x - before.x) / share, (now.y - before.y) / share];
    this._moveTo(this.center[0] - dx / this.zoom, this.center[1] - dy / this.zoom);
  }
}
