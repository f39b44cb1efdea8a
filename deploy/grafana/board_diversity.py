"""The dashboard diversity: Do images differ?"""

from panels import Board, Panel, Query, Row
from queries import HERE, MODEL, lately, quantiles, rate

DIVERSITY = Board(
    "diversity",
    "SPARKE: diversity",
    "Do images differ? The scores of the last images, what pushes them, and the memories behind that.",
    (("namespace", "sparke_build_info"), ("model", "sparke_diversity_score")),
    (
        Row(
            "Now",
            (
                Panel(
                    "Likeness",
                    "How alike two of the last images of one prompt are: 0 not at all, 1 the same.",
                    "percentunit",
                    [Query(f"max(model:sparke_likeness:mean{{{MODEL}}})")],
                    kind="number",
                ),
                Panel(
                    "Likeness against the day before",
                    "How many times as alike they are as the day before.",
                    "none",
                    [
                        Query(
                            f"max(avg_over_time(model:sparke_likeness:mean{{{MODEL}}}[15m]) / avg_over_time(model:sparke_likeness:mean{{{MODEL}}}[1d] offset 1h))"
                        )
                    ],
                    "SparkeDiversityCollapsed",
                    kind="number",
                ),
                Panel(
                    "Entries of memories",
                    "Entries in the memories of all tenants.",
                    "short",
                    [Query(f"sum(max by (namespace, model) (sparke_memory_entries{{{MODEL}}}))")],
                    kind="number",
                ),
            ),
        ),
        Row(
            "Scores",
            (
                Panel(
                    "Diversity score",
                    "Cond-RKE of the last images, how many different ones for one prompt, and what it would be if none resembled another.",
                    "none",
                    [
                        Query(f"avg by (model) (sparke_diversity_score{{{MODEL}}})", "{{model}}"),
                        Query(
                            f"avg by (model) (sparke_diversity_score_limit{{{MODEL}}})", "{{model}} at most"
                        ),
                    ],
                ),
                Panel(
                    "Likeness",
                    "How alike two of the last images of one prompt are, free of how many images and prompts they are of.",
                    "percentunit",
                    [Query(f"model:sparke_likeness:mean{{{MODEL}}}", "{{model}} {{namespace}}")],
                ),
                Panel(
                    "Diversity gain",
                    "How much less images resemble their neighbours than these resemble each other; 0 where guidance has no effect.",
                    "none",
                    [Query(f"avg by (model) (sparke_diversity_gain{{{MODEL}}})", "{{model}}")],
                    is_signed=True,
                ),
            ),
        ),
        Row(
            "What pushes",
            (
                Panel(
                    "Push of an image",
                    "Mean push over the steps, relative to the norm of the latents.",
                    "percentunit",
                    quantiles("sparke_push", "model", MODEL),
                ),
                Panel(
                    "Neighbours of an image",
                    "Entries of memories that an image was pushed away from.",
                    "none",
                    quantiles("sparke_neighbours", "model", MODEL),
                ),
                Panel(
                    "Images without neighbours",
                    "Share of the images for which a memory did nothing.",
                    "percentunit",
                    [
                        Query(
                            f'sum by (model) (rate(sparke_neighbours_bucket{{le="0.0",{MODEL}}}[$__rate_interval])) / sum by (model) (rate(sparke_neighbours_count{{{MODEL}}}[$__rate_interval]))',
                            "{{model}}",
                        )
                    ],
                ),
            ),
        ),
        Row(
            "Memories",
            (
                Panel(
                    "Entries",
                    "Entries in the memories of all tenants in the model's latent space.",
                    "short",
                    [
                        Query(
                            f"max by (namespace, model) (sparke_memory_entries{{{MODEL}}})",
                            "{{model}} {{namespace}}",
                        )
                    ],
                ),
                Panel(
                    "Entries appended and forgotten",
                    "Entries a second that images became, and that tenants had forgotten.",
                    "ops",
                    [
                        rate("sparke_memory_entries_appended_total", "model", MODEL),
                        rate("sparke_memory_entries_forgotten_total", legend="forgotten"),
                    ],
                ),
                Panel(
                    "Corrupt entries",
                    "Entries within an hour that workers passed over because they cannot be read.",
                    "none",
                    [lately("sparke_memory_entries_corrupt_total", legend="corrupt")],
                    "SparkeMemoryCorrupt",
                    1,
                ),
                Panel(
                    "Images removed",
                    "Images a second: expired, left by a job that ended without them, forgotten.",
                    "ops",
                    [
                        rate("sparke_images_expired_total", legend="expired"),
                        rate("sparke_images_orphaned_total", legend="orphaned"),
                        rate("sparke_images_forgotten_total", legend="forgotten"),
                    ],
                ),
                Panel(
                    "Copies of memories",
                    "Size of all workers' copies of memories.",
                    "bytes",
                    [Query(f"sum(sparke_memory_cache_bytes{{{HERE}}})", "all workers")],
                ),
                Panel(
                    "Searching memories",
                    "Time to find the neighbours of one request, over all workers.",
                    "s",
                    quantiles("sparke_memory_search_seconds"),
                ),
            ),
        ),
    ),
)
