/** Who has to act: whoever gave the input, whoever keeps the bundle, or whoever keeps the browser. */
export type FailureKind = "input" | "integrity" | "backend";

/** An expected failure: `message` says what is wrong, `hint` what to do about it. */
export class RekdError extends Error {
  override readonly name = "RekdError";

  constructor(
    readonly kind: FailureKind,
    message: string,
    readonly hint: string = "",
  ) {
    super(message);
  }
}

export function broken(message: string): RekdError {
  return new RekdError("integrity", message, "copy or export the bundle again");
}
