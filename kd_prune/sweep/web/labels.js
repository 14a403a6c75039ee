// Names beside points, for figures in which few methods have more than one.

const LABEL = { height: 14, letter: 6.2, gap: 10, point: 12 }; // pixels, of text of size 11
// Heights of a label, in the order in which they are tried: 0, -1, 1, -2, 2, … 12.
const LABEL_SHIFTS = Array.from({ length: 25 }, (_, i) => (i % 2 ? -1 : 1) * Math.ceil(i / 2));

const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

// Each point's place for its text, right or left of it and shifted down: the first in which it covers no point and no other text.
function labelPlaces(points, width, height) {
  const half = LABEL.point / 2;
  const taken = points.map(({ x, y }) => ({ left: x - half, right: x + half, top: y - half, bottom: y + half }));
  return points.map(({ x, y, text }) => {
    const long = LABEL.letter * text.length;
    const places = LABEL_SHIFTS.flatMap((shift) => [1, -1].map((side) => {
      const left = side > 0 ? x + LABEL.gap : x - LABEL.gap - long;
      const top = y + (shift - 0.5) * LABEL.height;
      return { side, down: shift * LABEL.height, left, right: left + long, top, bottom: top + LABEL.height };
    }));
    const inside = (place) => place.left >= 0 && place.right <= width && place.top >= 0 && place.bottom <= height;
    const found = places.find((place) => inside(place) && !taken.some((other) => overlap(place, other))) ?? places[0];
    taken.push(found);
    return found;
  });
}

// Fixed ranges of both axes, and an annotation per place that has points; equal points share one.
function namedPoints(points, width, height) {
  const range = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const margin = 0.08 * (high - low) || 1;
    return [low - margin, high + margin];
  };
  const [xs, ys] = [range(points.map((p) => p.x)), range(points.map((p) => p.y))];
  const pixels = points.map((p) => ({
    ...p, at: [Math.round((p.x - xs[0]) / (xs[1] - xs[0]) * width), Math.round((ys[1] - p.y) / (ys[1] - ys[0]) * height)],
  }));
  const places = [...groupBy(pixels, (p) => p.at.join()).values()].map((same) => ({
    ...same[0], px: same[0].at[0], py: same[0].at[1], text: same.map((p) => p.name).join(", "),
  }));
  places.sort((a, b) => b.text.length - a.text.length || a.py - b.py || a.px - b.px); // long texts fit in few places
  const found = labelPlaces(places.map((p) => ({ x: p.px, y: p.py, text: p.text })), width, height);
  const annotations = places.map((p, at) => ({
    x: p.x, y: p.y, text: plain(p.text), font: { size: 11 }, xanchor: found[at].side > 0 ? "left" : "right",
    ax: found[at].side * LABEL.gap, ay: found[at].down, showarrow: true, arrowhead: 0, arrowwidth: 0.5, arrowcolor: colour("faint"), borderpad: 0,
  }));
  return { annotations, xs, ys };
}
