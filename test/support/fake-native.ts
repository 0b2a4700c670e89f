/** A native model whose events the test sends. */

import type { NativeEvent, NativeModel, NativeRequest, NativeStats } from "../../lib/native";

/** Distributes over the kinds of event. */
type WithoutId<T> = T extends unknown ? Omit<T, "id"> : never;

export class FakeNative implements NativeModel {
  readonly requests: NativeRequest[] = [];
  readonly cancelled: number[] = [];
  disposals = 0;
  /** What `submit` throws. */
  refusal: unknown;

  constructor(private readonly onEvents: (events: NativeEvent[]) => void) {}

  /** Ids count from 1 in the order of the requests. */
  send(id: number, ...events: WithoutId<NativeEvent>[]): void {
    this.onEvents(events.map((event) => ({ ...event, id }) as NativeEvent));
  }

  description(): string {
    return "fake";
  }

  submit(request: NativeRequest): number {
    if (this.refusal) throw this.refusal;
    return this.requests.push(request);
  }

  cancel(id: number): void {
    this.cancelled.push(id);
  }

  stats(): NativeStats {
    return {
      running: 0,
      waiting: 0,
      sequenceBytes: 0,
      workspaceBytes: 0,
      allocatedBytes: 0,
      availableBytes: 0,
      steps: 0,
      rows: 0,
      graphsReplayed: 0,
      listsLaunched: 0,
      completed: 0,
      failed: 0,
      cancelled: 0,
      refused: 0,
    };
  }

  async dispose(): Promise<void> {
    this.disposals++;
  }
}
