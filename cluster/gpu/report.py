"""The tables, floors and goals of check.py."""

import statistics

OURS, KERNELS, EAGER, COMPILED = PROGRAMS = ["codinet-train", "with own kernels", "PyTorch eager", "torch.compile"]


def floors(facts, net, gated, images):
    """Images/s at the peak of the arithmetic, and at the peak of the memory."""
    work = facts["work"][net]["gated" if gated else "static"]
    peak = facts["peak"] or facts["measured"]
    # Forward and backward read the fp32 weights and write their gradients; the update reads three tensors and writes two.
    by_bytes = work["bytes"] + 4 * 8 * work["parameters"] / images
    return {"flops": peak["tflops"] * 1e12 / work["flops"], "bytes": peak["gb_per_s"] * 1e9 / by_bytes}


def median(cell):
    return statistics.median(cell["images_per_second"]) if cell and cell["images_per_second"] else None


def verdict(row):
    """Of a comparison of GPU and CPU."""
    return "failed" if "failed" in row else "right" if row["right"] else "wrong"


def table(result):
    facts = result["device"]
    out = [f"{facts['name']}, driver {facts['driver']}, {facts['cores']} cores, torch {facts['torch']}, {result['date']}, {result['version']}", ""]
    out += ["Differences at the first step, and at any; in brackets what two numbers of CPU threads allow.", ""]
    out += ["| network | precision | loss | gradient norm | |", "|---|---|---|---|---|"]
    for row in result["right"]:
        if "off" in row:
            (loss, norm), (most_loss, most_norm) = row["off"]
            (loss_limit, norm_limit), (most_loss_limit, most_norm_limit) = row["allowed"]
            cells = [f"{loss:.1e} ({loss_limit:.1e}), {most_loss:.1e} ({most_loss_limit:.1e})"]
            cells += [f"{norm:.1e} ({norm_limit:.1e}), {most_norm:.1e} ({most_norm_limit:.1e})"]
        else:
            cells = [row["failed"], ""]
        cells = [row["what"], row["precision"], *cells, verdict(row) if row["right"] else f"**{verdict(row)}**"]
        out.append("| " + " | ".join(cells) + " |")
    out += ["", "| network | images per step | fed by | " + " | ".join(PROGRAMS) + " | best of ours to eager | to compile | loader wait | floor, FLOPs | floor, bytes |"]
    out.append("|---" * (8 + len(PROGRAMS)) + "|")
    for row in result["fast"]:
        speeds = [median(row["programs"].get(program)) for program in PROGRAMS]
        cells = [f"ResNet-{row['net'][1:]}, {'gated' if row['gated'] else 'static'}", str(row["images"]), row["source"]]
        for program, speed in zip(PROGRAMS, speeds):
            failed = row["programs"].get(program, {}).get("failed")
            samples = row["programs"].get(program, {}).get("images_per_second")
            cells.append(f"{speed:,.1f} ({min(samples):,.1f} to {max(samples):,.1f})" if speed else failed or "–")
        best = max(filter(None, speeds[:2]), default=None)
        cells += [f"{best / peer:.2f}" if best and peer else "–" for peer in speeds[2:]]
        wait = row["programs"].get(OURS, {}).get("loader_wait")
        cells += ["–" if wait is None else f"{100 * wait:.1f} %"]
        cells += [f"{row['floors'][floor]:,.0f}" for floor in ("flops", "bytes")]
        out.append("| " + " | ".join(cells) + " |")
    out += ["", "| inference, 60 % of the blocks | static, ms per batch | gated | speed-up in time over speed-up in MACs |", "|---|---|---|---|"]
    for row in result["inference"]:
        cells = [row["failed"], "", ""] if "failed" in row else [f"{row['static']:.2f}", f"{row['gated']:.2f}"]
        cells += [] if "failed" in row else [f"{100 * row['static'] / row['gated'] / row['by_macs']:.0f} %"]
        out.append("| " + " | ".join([row["what"], *cells]) + " |")
    out += ["", *result["goals"]]
    peak = facts["peak"] or facts["measured"]
    source = "NVIDIA's data sheet" if facts["peak"] else "measured"
    measured = facts["measured"]
    out += [f"Floors at {peak['tflops']:,.1f} TFLOP/s and {peak['gb_per_s']:,.0f} GB/s ({source}); a bf16 matrix product reached {measured['tflops']:,.1f}, a copy {measured['gb_per_s']:,.0f}."]
    out += [f"Loader-fed: {result['fed']}."]
    out += ["Skipped for lack of time: " + ("; ".join(result["left_out"]) or "nothing") + "."]
    return "\n".join(out)


def goals(rows, facts):
    """The goals next to the measured values, one line each."""
    speed = {(row["net"], row["gated"], row["images"], row["source"]): row["programs"] for row in rows}
    lines = []
    for (net, gated, images, source), programs in speed.items():
        if source != "synthetic":
            synthetic = median(speed.get((net, gated, images, "synthetic"), {}).get(OURS))
            fed = median(programs.get(OURS))
            if synthetic and fed:
                lines.append(f"ResNet-{net[1:]}, gated, {images} images: loader-fed at {100 * fed / synthetic:.1f} % of synthetic.")
            continue
        gated_speed = median(programs.get(OURS))
        static = median(speed.get((net, False, images, source), {}).get(OURS))
        if gated and gated_speed and static:
            work = facts["work"][net]
            share = gated_speed / static * work["gated"]["macs"] / work["static"]["macs"]
            lines.append(f"ResNet-{net[1:]}, {images} images: gated at {100 * share:.1f} % of the static speed times the ratio of MACs (goal: 95 %).")
    return [*(f"- {line}" for line in lines), ""] if lines else []
