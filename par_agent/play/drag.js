// js_on_load of a gr.HTML around a gr.Image: tells from which pixel of the image to which the pointer was dragged.
// A click begins and ends at the same pixel. The image fills its box as far as its shape allows, centred (page.css).
let start = null;
let width, height; // of the image in pixels; it does not know its own while it loads the next picture

const pixel = (event) => {
  const box = element.querySelector("img").getBoundingClientRect();
  const scale = Math.min(box.width / width, box.height / height);
  const x = event.clientX - box.left - box.width / 2;
  const y = event.clientY - box.top - box.height / 2;
  return [width / 2 + x / scale, height / 2 + y / scale];
};

const follow = (event) => {
  const marker = element.querySelector(".marker");
  marker.style.left = `${event.clientX}px`;
  marker.style.top = `${event.clientY}px`;
  element.classList.toggle("dragging", start !== null);
};

const measure = (event) => ([width, height] = [event.target.naturalWidth, event.target.naturalHeight]);
element.addEventListener("load", measure, { capture: true }); // it does not bubble
element.addEventListener("dragstart", (event) => event.preventDefault()); // the browser's own, of a copy of the image
element.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || event.target.tagName !== "IMG" || !width) return;
  start = pixel(event);
  element.setPointerCapture(event.pointerId);
});
element.addEventListener("pointermove", follow);
element.addEventListener("pointerup", (event) => {
  if (start !== null) trigger("release", { start: start, end: pixel(event) });
  start = null;
  follow(event);
});
element.addEventListener("pointercancel", (event) => {
  start = null;
  follow(event);
});
