import type { ImagePrediction, PatchBox } from "../src/rationalist.js";

const LONG_SIDE = 1024;

/** What is marked in an image. */
export type Marked = Pick<ImagePrediction, "rationale" | "answerRationale" | "consulted">;

/**
 * The image with everything dimmed that the answer was not read from, kept patches outlined;
 * with dashes those that only the other one of two students read.
 */
export function drawOverlay(
  canvas: HTMLCanvasElement,
  image: ImageBitmap,
  prediction: Marked & Pick<ImagePrediction, "view">,
  isDimmed: boolean,
): void {
  const { rationale, answerRationale, consulted, view } = prediction;
  const longest = Math.max(view.width, view.height);
  const scale =
    longest < LONG_SIDE / 2 ? Math.max(1, Math.floor(640 / longest)) : Math.min(1, LONG_SIDE / longest);
  canvas.width = Math.max(1, Math.round(view.width * scale));
  canvas.height = Math.max(1, Math.round(view.height * scale));
  const context = canvas.getContext("2d")!;
  context.imageSmoothingEnabled = scale < 1;
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const scaled = ({ x, y, width, height }: PatchBox) => {
    const left = Math.round(x * scale);
    const top = Math.round(y * scale);
    const right = Math.round((x + width) * scale);
    return [left, top, right - left, Math.round((y + height) * scale) - top] as const;
  };
  if (isDimmed) {
    context.beginPath();
    context.rect(0, 0, canvas.width, canvas.height);
    for (const box of rationale) context.rect(...scaled(box));
    context.fillStyle = "rgb(12 14 18 / 72%)";
    context.fill("evenodd");
  }
  const line = Math.max(2, Math.round(Math.min(canvas.width, canvas.height) / 200));
  for (const [boxes, bright, dashes] of [
    [consulted ?? [], "#fff", [3 * line, 2 * line]],
    [answerRationale ?? rationale, "#ffd54a", []],
  ] as const) {
    for (const [width, color, gaps] of [[line * 2, "#111", []], [line, bright, dashes]] as const) {
      context.lineWidth = width;
      context.strokeStyle = color;
      context.setLineDash([...gaps]);
      for (const [left, top, across, down] of boxes.map(scaled)) {
        context.strokeRect(left + line, top + line, across - 2 * line, down - 2 * line);
      }
    }
  }
  context.setLineDash([]);
  if (view.width !== view.height) {
    const read = view.size * scale;
    const [scaleX, scaleY] = [view.width / view.resizedWidth, view.height / view.resizedHeight];
    const square = [view.left * scaleX * scale, view.top * scaleY * scale, read * scaleX, read * scaleY] as const;
    for (const [dashes, color] of [[[], "#111"], [[6 * line, 4 * line], "#fff"]] as const) {
      context.lineWidth = line;
      context.setLineDash([...dashes]);
      context.strokeStyle = color;
      context.strokeRect(square[0] + line / 2, square[1] + line / 2, square[2] - line, square[3] - line);
    }
    context.setLineDash([]);
  }
}
