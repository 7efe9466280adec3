// js_on_load of a gr.HTML around a gr.Image: tells from which pixel of the image to which the pointer was dragged.
// A click begins and ends at the same pixel. The image fills its box as far as its shape allows, centred (page.css).
let start = null;

const pixel = (event) => {
  const image = element.querySelector("img");
  const box = image.getBoundingClientRect();
  const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
  const x = event.clientX - box.left - box.width / 2;
  const y = event.clientY - box.top - box.height / 2;
  return [image.naturalWidth / 2 + x / scale, image.naturalHeight / 2 + y / scale];
};

const follow = (event) => {
  const marker = element.querySelector(".marker");
  marker.style.left = `${event.clientX}px`;
  marker.style.top = `${event.clientY}px`;
  element.classList.toggle("dragging", start !== null);
};

element.addEventListener("dragstart", (event) => event.preventDefault()); // the browser's own, of a copy of the image
element.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || event.target.tagName !== "IMG") return;
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
