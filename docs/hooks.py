"""Pages of the site that live elsewhere in the repository, beside what they tell of."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ELSEWHERE = ("benchmarks/*.md", "benchmarks/*.png")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds them under the paths that they have in the repository, so that links between them hold in both."""
    for pattern in ELSEWHERE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files
