/** Names that patterns stand for. A regular expression of many stars could take forever over one name. */

/** Whether a name fits a pattern in which * stands for any characters, and `one`, where it is given, for any single one. */
export function matches(name: string, pattern: string, one?: string): boolean {
  let at = 0;
  let next = 0;
  // Behind the last star: the place in the pattern, and the first in the name that the star does not take.
  let star = -1;
  let behind = 0;
  while (at < name.length) {
    if (pattern[next] === "*") {
      star = ++next;
      behind = at;
    } else if (next < pattern.length && [one, name[at]].includes(pattern[next])) {
      next++;
      at++;
    } else if (star >= 0) {
      next = star;
      at = ++behind;
    } else {
      return false;
    }
  }
  while (pattern[next] === "*") next++;
  return next === pattern.length;
}
