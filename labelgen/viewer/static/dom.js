// What builds the page. All texts become text nodes, so that no name or message is ever read as HTML.

export const byId = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const fixed = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));

export const whole = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en-US"));

export function short(value) {
  if (value >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  return value >= 1e4 ? `${+(value / 1e3).toPrecision(3)}k` : String(Math.round(value));
}

export const plural = (count, word) => `${whole(count)} ${word}${count === 1 ? "" : "s"}`;

// Call `act` once, when nobody has asked for it for so long.
export function later(act, milliseconds) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...given), milliseconds);
  };
}

// The colour of a mask, as labelgen/page/drawing.py gives it: neighbours differ in hue.
export function colourOf(mask, alpha = 1) {
  const hue = 2 * ((mask * 67) % 180);
  const saturation = 200 / 255;
  return `hsl(${hue} 100% ${100 * (1 - saturation / 2)}% / ${alpha})`;
}
