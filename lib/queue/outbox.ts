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
  private failed = false;

  constructor(private readonly deliver: (jobs: Job[]) => Promise<void>) {}

  /**
   * Adds a job of about so many characters; waits until it is sent where those that wait are many. Throws what sending
   * failed with, also earlier ones.
   */
  async add(job: Job, length: number): Promise<void> {
    if (this.failed) await this.sent;
    this.waiting.push(job);
    this.length += length;
    if (this.waiting.length >= MOST || this.length >= MOST_LENGTH) return this.send();
    this.timer ??= setTimeout(() => {
      this.send().catch(() => {
        // Whoever adds the next is told.
        this.failed = true;
      });
    }, LONGEST_WAIT);
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
