/** Jobs on their way into a queue: many are sent at once, and none waits long for others. */

/** Jobs that are sent at once at most, */
const MOST = 500;
/** their characters from which on no others are waited for: images in data URIs are long, */
const MOST_LENGTH = 2 ** 24;
/** and milliseconds that the first waits for others, which come slowly from a pipe. */
const LONGEST_WAIT = 1000;

export class Outbox<Job> {
  private waiting: Job[] = [];
  private length = 0;
  private timer: NodeJS.Timeout | undefined;
  /** All that was sent, one after the other. */
  private sent: Promise<void> = Promise.resolve();
  private fail!: (error: unknown) => void;
  /** Rejects with what sending by itself failed with: nothing more is sent then, and the next job may be hours away. */
  readonly failure = new Promise<never>((_, reject) => {
    this.fail = reject;
  });

  constructor(private readonly deliver: (jobs: Job[]) => Promise<void>) {
    this.failure.catch(() => {}); // told to whoever waits for it
  }

  /**
   * Adds a job of about so many characters; waits until it is sent where those that wait are many. Throws what sending
   * failed with then.
   */
  async add(job: Job, length: number): Promise<void> {
    this.waiting.push(job);
    this.length += length;
    if (this.waiting.length >= MOST || this.length >= MOST_LENGTH) return this.send();
    this.timer ??= setTimeout(() => this.send().catch(this.fail), LONGEST_WAIT);
  }

  /** Sends what waits, behind what is being sent. */
  send(): Promise<void> {
    this.stop();
    this.sent = this.sent.then(async () => {
      const jobs = this.waiting;
      if (jobs.length === 0) return;
      this.waiting = [];
      this.length = 0;
      await this.deliver(jobs);
    });
    return this.sent;
  }

  /** Sends nothing more by itself. */
  stop(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
  }
}
