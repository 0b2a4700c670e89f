// In the place of sharp in bundles of programs that read and write no image files.
export default function sharp() {
  throw new Error("this bundle has no sharp: it reads and writes no image files");
}
