/**
 * Pillow's resize on raw pixels, to the last bit: separable, with the support widened when an image
 * shrinks, coefficients as integers of 22 bits, and 8-bit pixels between the two passes.
 * A browser's own resampling is another one in each browser.
 */
export type Interpolation = "bilinear" | "bicubic" | "lanczos";

/** How an image becomes model input: resized, then a square of `size` is cut out. In pixels. */
export interface View {
  readonly width: number;
  readonly height: number;
  readonly resizedWidth: number;
  readonly resizedHeight: number;
  readonly left: number;
  readonly top: number;
  readonly size: number;
}

/** Pixels of an image from the top: RGBA, 8 bits, opaque. */
export interface Rows {
  readonly top: number;
  readonly count: number;
  readonly data: Uint8Array | Uint8ClampedArray;
}

const PRECISION_BITS = 22;
const HALF = 1 << (PRECISION_BITS - 1);

/** The short side becomes `size` (the long one is rounded down); the centre is cut out. */
export function viewOf(width: number, height: number, size: number): View {
  const longSide = (long: number, short: number) =>
    Math.max(size, Math.floor((size * long) / short));
  const [resizedWidth, resizedHeight] =
    width <= height ? [size, longSide(height, width)] : [longSide(width, height), size];
  return {
    width,
    height,
    resizedWidth,
    resizedHeight,
    left: Math.floor((resizedWidth - size) / 2),
    top: Math.floor((resizedHeight - size) / 2),
    size,
  };
}

/** Rows of the image that the view is made of: `[first, end]`. */
export function rowsRead(view: View, interpolation: Interpolation): [number, number] {
  const taps = tapsOf(view.height, view.resizedHeight, view.top, view.size, interpolation);
  return [taps.first[0]!, taps.first[view.size - 1]! + taps.weights[view.size - 1]!.length];
}

/**
 * `[size, size, 3]` of the view. `parts` give the rows of `rowsRead` from top to bottom, each once,
 * in pieces of any height: a large photograph need not be in memory as a whole.
 */
export function resample(
  view: View,
  interpolation: Interpolation,
  parts: Iterable<Rows>,
): Uint8Array {
  const { size } = view;
  const across = tapsOf(view.width, view.resizedWidth, view.left, size, interpolation);
  const down = tapsOf(view.height, view.resizedHeight, view.top, size, interpolation);
  const [firstRow, endRow] = rowsRead(view, interpolation);
  const narrow = new Uint8Array((endRow - firstRow) * size * 3);
  let next = firstRow;
  for (const { top, count, data } of parts) {
    for (let row = Math.max(top, firstRow); row < Math.min(top + count, endRow); row++, next++) {
      if (row !== next) throw new Error(`row ${next} of the image is due, not ${row}`);
      const source = (row - top) * view.width * 4;
      const target = (row - firstRow) * size * 3;
      for (let x = 0; x < size; x++) {
        weigh(data, source + across.first[x]! * 4, 4, across.weights[x]!, narrow, target + x * 3);
      }
    }
  }
  if (next !== endRow) throw new Error(`rows from ${next} of the image are missing`);
  const square = new Uint8Array(size * size * 3);
  for (let y = 0; y < size; y++) {
    const weights = down.weights[y]!;
    const source = (down.first[y]! - firstRow) * size * 3;
    for (let x = 0; x < size; x++) {
      weigh(narrow, source + x * 3, size * 3, weights, square, (y * size + x) * 3);
    }
  }
  return square;
}

/** The weighted sum of pixels that lie `step` apart, in three channels. */
function weigh(
  source: Uint8Array | Uint8ClampedArray,
  from: number,
  step: number,
  weights: Int32Array,
  target: Uint8Array,
  to: number,
): void {
  let red = HALF;
  let green = HALF;
  let blue = HALF;
  for (let tap = 0, at = from; tap < weights.length; tap++, at += step) {
    const weight = weights[tap]!;
    red += source[at]! * weight;
    green += source[at + 1]! * weight;
    blue += source[at + 2]! * weight;
  }
  target[to] = clip(red);
  target[to + 1] = clip(green);
  target[to + 2] = clip(blue);
}

function clip(sum: number): number {
  const value = sum >> PRECISION_BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

interface Taps {
  /** First source position of each output position. */
  readonly first: Int32Array;
  readonly weights: Int32Array[];
}

/** For output positions `offset` to `offset + count` of `outSize`. */
function tapsOf(
  inSize: number,
  outSize: number,
  offset: number,
  count: number,
  interpolation: Interpolation,
): Taps {
  const first = new Int32Array(count);
  const weights: Int32Array[] = [];
  if (inSize === outSize) {
    const whole = Int32Array.of(1 << PRECISION_BITS);
    for (let index = 0; index < count; index++) {
      first[index] = offset + index;
      weights.push(whole);
    }
    return { first, weights };
  }
  const [filter, reach] = FILTERS[interpolation];
  const scale = inSize / outSize;
  const widening = Math.max(scale, 1);
  const support = reach * widening;
  for (let index = 0; index < count; index++) {
    const centre = (offset + index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(inSize, Math.trunc(centre + support + 0.5));
    const exact = new Float64Array(end - start);
    let sum = 0;
    for (let tap = 0; tap < exact.length; tap++) {
      const weight = filter((tap + start - centre + 0.5) * (1 / widening));
      exact[tap] = weight;
      sum += weight;
    }
    first[index] = start;
    weights.push(
      Int32Array.from(exact, (weight) => {
        const value = (sum === 0 ? weight : weight / sum) * (1 << PRECISION_BITS);
        return Math.trunc(value < 0 ? value - 0.5 : value + 0.5);
      }),
    );
  }
  return { first, weights };
}

const FILTERS: Record<Interpolation, readonly [(x: number) => number, number]> = {
  bilinear: [(x) => Math.max(0, 1 - Math.abs(x)), 1],
  bicubic: [bicubic, 2],
  lanczos: [(x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0), 3],
};

function bicubic(signed: number): number {
  const a = -0.5;
  const x = Math.abs(signed);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}
