/**
 * An image file as upright pixels, the way the Python runtime reads one: EXIF rotation applied,
 * colour profiles ignored, transparency laid over white.
 */
import { RekdError } from "./errors.js";
import type { Rows } from "./resample.js";

/** Any picture of which rows of RGBA pixels can be read. */
export interface Picture {
  readonly width: number;
  readonly height: number;
  /** Rows `[first, end]` from top to bottom, in pieces. */
  rows(first: number, end: number): Iterable<Rows>;
  close(): void;
}

/** Pixels that are already there: RGBA, 8 bits, opaque. */
export interface RawPixels {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array | Uint8ClampedArray;
}

/** As Pillow: larger images are taken for an attack on the memory. */
export const MOST_PIXELS = 89_478_485;
/** Pixels read from a canvas at once; a whole photograph is more than some phones' canvases hold. */
const PIECE_PIXELS = 1 << 20;

export function rawPicture({ width, height, data }: RawPixels): Picture {
  if (data.length !== width * height * 4) {
    throw new RekdError("input", `${data.length} bytes are not ${width} x ${height} RGBA pixels.`);
  }
  return { width, height, rows: () => [{ top: 0, count: height, data }], close: () => {} };
}

export async function decode(file: Blob): Promise<Picture> {
  const header = new Uint8Array(await file.slice(0, 1 << 18).arrayBuffer());
  const size = sizeOf(header);
  if (size !== undefined) requireSize(...size);
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new RekdError(
      "input",
      "The file is not an image, is damaged, or has a format that this browser does not know.",
      "Use a JPEG or PNG file.",
    );
  }
  const { width, height } = bitmap;
  try {
    requireSize(width, height);
    requireFaithfulCanvas();
  } catch (error) {
    bitmap.close();
    throw error;
  }
  return {
    width,
    height,
    rows: (first, end) => canvasRows(bitmap, first, end),
    close: () => bitmap.close(),
  };
}

function requireSize(width: number, height: number): void {
  if (width < 1 || height < 1) throw new RekdError("input", "The image is empty.");
  if (width * height > MOST_PIXELS) {
    throw new RekdError(
      "input",
      `The image is too large: ${width} x ${height} pixels.`,
      `Reduce it to ${Math.floor(MOST_PIXELS / 1e6)} megapixels or less.`,
    );
  }
}

function* canvasRows(bitmap: ImageBitmap, first: number, end: number): Generator<Rows> {
  const height = Math.max(1, Math.floor(PIECE_PIXELS / bitmap.width));
  const context = canvas(bitmap.width, Math.min(height, end - first));
  context.fillStyle = "#fff";
  for (let top = first; top < end; top += height) {
    const count = Math.min(height, end - top);
    context.fillRect(0, 0, bitmap.width, count);
    context.drawImage(bitmap, 0, -top);
    yield { top, count, data: context.getImageData(0, 0, bitmap.width, count).data };
  }
}

/** Some browsers add noise to what is read from a canvas, against tracking. */
function requireFaithfulCanvas(): void {
  const side = 32;
  const context = canvas(side, side);
  const written = new ImageData(side, side);
  for (let index = 0; index < written.data.length; index++) {
    written.data[index] = index % 4 === 3 ? 255 : (index * 37) % 256;
  }
  context.putImageData(written, 0, 0);
  const found = context.getImageData(0, 0, side, side).data;
  if (found.some((value, index) => value !== written.data[index])) {
    throw new RekdError(
      "backend",
      "This browser changes the pixels that a page reads, so an answer could be wrong.",
      "Switch off its protection against fingerprinting for this page.",
    );
  }
}

function canvas(
  width: number,
  height: number,
): CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D {
  const surface =
    typeof OffscreenCanvas === "undefined"
      ? Object.assign(document.createElement("canvas"), { width, height })
      : new OffscreenCanvas(width, height);
  const settings = { willReadFrequently: true, colorSpace: "srgb" } as const;
  const context = surface.getContext("2d", settings) as
    | CanvasRenderingContext2D
    | OffscreenCanvasRenderingContext2D
    | null;
  if (context === null) throw new RekdError("backend", "This browser has no canvas to read from.");
  return context;
}

/** Width and height as the header of a PNG or JPEG says, before anything is unpacked. */
export function sizeOf(header: Uint8Array): [number, number] | undefined {
  const view = new DataView(header.buffer, header.byteOffset, header.byteLength);
  if (header.length >= 24 && view.getUint32(0) === 0x89504e47) {
    return [view.getUint32(16), view.getUint32(20)];
  }
  if (header.length < 4 || view.getUint16(0) !== 0xffd8) return undefined;
  for (let at = 2; at + 9 <= header.length; ) {
    if (header[at] !== 0xff) return undefined;
    const marker = header[at + 1]!;
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) return [view.getUint16(at + 7), view.getUint16(at + 5)];
    at += 2 + view.getUint16(at + 2);
  }
  return undefined;
}
