"""The demo's cluster with links between its nodes that can fail: the daemons' by proxies, the trainers' by the kernel."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ckptd.ckpt.errors import CkptdError
from ckptd.daemon.demo import links, wires
from ckptd.daemon.demo.cluster import Cluster, address_of
from ckptd.daemon.demo.options import DemoOptions, Layout
from ckptd.daemon.demo.stage import Stage
from ckptd.daemon.demo.watch import Event


class LinkedCluster(Cluster):
    """Daemons find each other through `links.Links`; everything else is as in the demo."""

    def __init__(self, options: DemoOptions, layout: Layout) -> None:
        super().__init__(options, layout)
        self.links = links.Links(options.seed)
        self.ports = [int(address.rpartition(":")[2]) for address in self.addresses]
        for reader in range(options.nodes):
            for node in range(options.nodes):
                if reader != node:
                    self.links.open(reader, node, self.ports[node], address_of(node))

    def addresses_for(self, node: int) -> list[str]:
        others = range(self.options.nodes)
        return [
            self.addresses[other] if other == node else f"{links.address_of(node, other)}:{self.ports[other]}"
            for other in others
        ]

    def take_note(self, event: Event) -> None:
        """A daemon that is ready says at which port its bytes are read: lead there, too."""
        if event.told_by == "daemon" and event.name == "ready":
            node, port = int(event.fields["node"]), int(event.fields["data_port"])
            for reader in range(self.options.nodes):
                if reader != node:
                    self.links.open(reader, node, port, address_of(node))

    def spoil_link(self, ill: wires.Ill, a: int, b: int, pids: Mapping[int, int]) -> float:
        """Let the link of two nodes be slow, lossy or cut, as a wire is: for daemons and trainers; return when.

        `pids`: of the trainers, by rank. Raises CkptdError when that is not possible here.
        """
        try:
            ports = wires.between(pids[a], pids[b])
            news = self.spoiled.with_suffix(".new")
            news.write_text(json.dumps(ports))
            news.replace(self.spoiled)
            self.links.set(a, b, ill)
        except OSError as error:
            raise CkptdError(f"this kernel has no option to make a link {ill}: {error.strerror}") from error
        return self.mislead([pids[a], pids[b]])

    def stop(self) -> list[int]:
        try:
            return super().stop()
        finally:
            self.links.close()


class LinkedStage(Stage):
    """A stage that leads the links to daemons that have started again."""

    cluster: LinkedCluster

    def poll(self) -> None:
        seen = len(self.watch.events)
        super().poll()
        for event in self.watch.events[seen:]:
            self.cluster.take_note(event)
