"""`glm-infill serve`: a model over HTTP."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from engine.process import EngineProcess
from engine.rank_info import RankInfo
from server.console import fail
from server.options import GroupSize, Head, KVCacheKind, Preset, Quantization, TokenizerFolder, named_folders
from server.serving import serve as run_server
from server.settings import Settings


class LoadFormat(StrEnum):
    """Where weights come from."""

    auto = "auto"
    dummy = "dummy"


class Device(StrEnum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def serve(
    model: Annotated[Path | None, typer.Argument(help="Checkpoint folder; the bundled demo when left out.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any that is free.")] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Name that this server is asked by; may be given often.")
    ] = None,
    quant: Quantization = None,
    group_size: GroupSize = None,
    quant_head: Head = None,
    preset: Preset = None,
    tokenizer: TokenizerFolder = None,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.auto,
    tp: Annotated[int | None, typer.Option(min=1, max=64, help="Devices, or processes, that share the model.")] = None,
    kv_cache_gb: Annotated[
        float | None, typer.Option(help="Memory for keys and values on each device, 10⁹ bytes.")
    ] = None,
    kv_cache_type: KVCacheKind = None,
    load_format: Annotated[
        LoadFormat | None, typer.Option(help="dummy reads no weights: all are invented, to try a machine.")
    ] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(help="Rows of one iteration.")] = None,
    max_queue: Annotated[int | None, typer.Option(help="Requests in flight before new ones get a 503.")] = None,
    max_queue_tokens: Annotated[int | None, typer.Option(help="Tokens that those in flight may need.")] = None,
    api_keys: Annotated[Path | None, typer.Option(help="Key file, see `keys new`; anybody may ask without.")] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="Of a key, or of all without keys.")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="Likewise, prompt and answer together.")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of an adapter; may be given often.")] = None,
    adapter_root: Annotated[Path | None, typer.Option(help="Folder below which /v1/adapters may load more.")] = None,
    max_adapters: Annotated[int | None, typer.Option(help="The one used least recently makes way for more.")] = None,
    otlp_endpoint: Annotated[str | None, typer.Option(help="Where OpenTelemetry spans go, by OTLP over HTTP.")] = None,
) -> None:
    """Serves a model over HTTP. Options left out come from GLM_INFILL_* or the defaults.

    Under torchrun every process is a rank, on one machine or several; the first one serves.
    """
    given = {
        "model": model,
        "host": host,
        "port": port,
        "allowed_hosts": allowed_host or None,
        "quant": quant.value if quant else None,
        "group_size": group_size,
        "quant_head": quant_head.value if quant_head else None,
        "preset": preset,
        "tokenizer": tokenizer,
        "tp": tp,
        "kv_cache_gb": kv_cache_gb,
        "kv_cache_type": kv_cache_type.value if kv_cache_type else None,
        "load_format": load_format.value if load_format else None,
        "max_batch_tokens": max_batch_tokens,
        "max_queue": max_queue,
        "max_queue_tokens": max_queue_tokens,
        "api_keys": api_keys,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "adapters": named_folders(adapter) if adapter else None,
        "adapter_root": adapter_root,
        "max_adapters": max_adapters,
        "otlp_endpoint": otlp_endpoint,
    }
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", code=2)
    rank_info = RankInfo.of_torchrun()
    size = settings.tp or (rank_info.size if rank_info else 1)
    if rank_info and size != rank_info.size:
        fail(f"--tp {size}: torchrun has started {rank_info.size} ranks", code=2)
    config = settings.engine(device.value, size)
    if rank_info and rank_info.rank > 0:
        from engine.worker import follow_launched

        follow_launched(config, rank_info)
    raise typer.Exit(run_server(settings, EngineProcess(config, rank_info=rank_info)))
