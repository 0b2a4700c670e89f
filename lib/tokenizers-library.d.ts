// What is used of the tokenizers library. Its own declarations import each other without file extensions,
// which node16 module resolution does not follow.
declare module "@huggingface/tokenizers" {
  export abstract class Decoder {
    constructor(config: object);
    decode(tokens: string[]): string;
    abstract decode_chain(tokens: string[]): string[];
  }

  export class ByteFallbackDecoder extends Decoder {
    decode_chain(tokens: string[]): string[];
  }

  export class SequenceDecoder extends Decoder {
    decoders: Decoder[];
    decode_chain(tokens: string[]): string[];
  }

  export class Tokenizer {
    constructor(tokenizer: object, config: object);
    normalizer: ((text: string) => string) | null;
    pre_tokenizer: ((text: string, options: { section_index: number }) => string[]) | null;
    model: {
      (words: string[]): string[];
      tokens_to_ids: ReadonlyMap<string, number>;
      unk_token_id?: number;
    };
    decoder: Decoder | null;
    id_to_token(id: number): string | undefined;
  }
}
