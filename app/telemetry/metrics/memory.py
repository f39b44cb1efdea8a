"""Metrics of memories and of what guidance makes of them."""

from prometheus_client import Counter, Gauge, Histogram

from app.telemetry.metrics.declaring import API, MODEL, WORKER, Declarations, Declared, Label

_SEARCH_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)
_SYNC_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)
_NEIGHBOURS = (0, 1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536)
_PUSH = (0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
SYNC_OUTCOMES = ("hit", "tail", "snapshot", "log")


class MemoryMetrics(Declarations):
    """Memories."""

    memory_entries = Declared(
        Gauge,
        "Entries in the memories of all tenants that are in the model's latent space, as counted last, by model: about once a "
        "minute by one API process, more seldom where that takes long. Models that share a latent space share memories and tell "
        "the same number, and so does every API process: take the largest.",
        process=API,
        labels=(MODEL,),
        compare="With what Redis has room for, by the bytes an entry takes.",
    )
    memory_entries_appended = Declared(
        Counter,
        "Entries that this worker appended to memories, by model.",
        process=WORKER,
        labels=(MODEL,),
        compare="With `sparke_images_total`: less where requests do not write, or memories are frozen.",
    )
    memory_entries_forgotten = Declared(
        Counter,
        "Entries that tenants had forgotten by this process. What caps take out, and memories of deleted tenants, are not in it.",
        process=API,
        compare="With `sparke_memory_entries_appended_total`.",
    )
    images_forgotten = Declared(
        Counter,
        "Images that this process removed, with what told of them, because they were forgotten.",
        process=API,
        compare="With `sparke_memory_entries_forgotten_total`, which it follows within minutes.",
    )
    memory_entries_corrupt = Declared(
        Counter,
        "Entries that this worker left out of its copies because they are corrupt, again each time a copy is built.",
        process=WORKER,
        compare="With 0: Redis, or a release, has damaged them; the log names memory and version.",
    )
    memory_sync_seconds = Declared(
        Histogram,
        "Time to bring a worker's copy of a memory up to date before it is read.",
        process=WORKER,
        compare="With `sparke_batch_seconds`: a hundredth of it, but where a copy is built anew.",
        buckets=_SYNC_S,
    )
    memory_search_seconds = Declared(
        Histogram,
        "Time to find the neighbours of one request in a worker's copies of memories: exact, over all distinct prompts.",
        process=WORKER,
        compare="With docs/scale.md, by the size of the memory.",
        buckets=_SEARCH_S,
    )
    memory_cache_bytes = Declared(
        Gauge,
        "Size of this worker's copies of memories.",
        process=WORKER,
        compare="With `SPARKE_MEMORY_CACHE_BYTES`: at it copies are evicted.",
    )
    memory_cache_lookups = Declared(
        Counter,
        "Readings of memories by this worker, by what it had: `hit`, a copy with nothing new in its log; `tail`, a copy that "
        "read on or dropped what was forgotten; `snapshot`, none, begun from a snapshot; `log`, none, or none that could be gone "
        "on from, read from its first entry.",
        process=WORKER,
        labels=(Label("outcome", SYNC_OUTCOMES),),
        compare="`snapshot` and `log` with all: after the start few, else SPARKE_MEMORY_CACHE_BYTES is too small.",
    )
    memory_cache_evictions = Declared(
        Counter,
        "Copies of memories that this worker dropped to keep within SPARKE_MEMORY_CACHE_BYTES.",
        process=WORKER,
        compare="With `sparke_memory_cache_lookups_total`.",
    )
    prompt_embedding_lookups = Declared(
        Counter,
        "Prompts that jobs and questions had embedded, by whether this worker still knew the embedding, by model.",
        process=WORKER,
        labels=(MODEL, Label("outcome", ("hit", "miss"))),
        compare="`hit` with all: the share of prompts that came again lately.",
    )


class DiversityMetrics(Declarations):
    """Diversity."""

    push = Declared(
        Histogram,
        "Mean over the steps of the push of an image, relative to the norm of its latents, by model.",
        process=WORKER,
        labels=(MODEL,),
        compare="With the preset's `max_push`, its bound; 0 where nothing was near or the strength was 0.",
        buckets=_PUSH,
    )
    neighbours = Declared(
        Histogram,
        "Entries of memories that an image was pushed away from, by model.",
        process=WORKER,
        labels=(MODEL,),
        compare="With the preset's `max_neighbours`; without neighbours the memory does nothing for an image.",
        buckets=_NEIGHBOURS,
    )
    diversity_score = Declared(
        Gauge,
        "Cond-RKE of the last images that this worker committed, 256 at most and an hour old at most, over all tenants, by "
        "model: how many different images there are for one prompt. 1 where all images of a prompt are alike; that images of "
        "different prompts differ counts nothing. Renewed every 15 s, from the features that memories hold.",
        process=WORKER,
        labels=(MODEL,),
        compare="With `sparke_diversity_score_limit`, which it would reach if no image resembled another; both grow where prompts "
        "come again more often.",
    )
    diversity_score_limit = Declared(
        Gauge,
        "What `sparke_diversity_score` would be of the same prompts if no image resembled another, by model: how many images "
        "there are for one prompt. 1 where no prompt came twice: then the score says nothing.",
        process=WORKER,
        labels=(MODEL,),
        compare="With 1.",
    )
    diversity_gain = Declared(
        Gauge,
        "How much less, on average, the last images of this worker resemble their neighbours in memories than those resemble "
        "each other, by model: a similarity is from 0 to 1. Of the last 256 images that had two neighbours or more; an image of "
        "strength 0 gained 0. Above 0 where guidance finds room that the past left; see docs/adr/0046-diversity-metrics.md.",
        process=WORKER,
        labels=(MODEL,),
        compare="With 0, which guidance without effect has on average. It falls as a memory fills: then "
        "`sparke_diversity_score` tells whether there is room left.",
    )
