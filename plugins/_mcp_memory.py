"""The knowledge graph of `occamdb mcp --memory`: the nine tools of the reference memory server, under their names.

1. An entity is the key `entity/NAME` of one run, with its type and observations. A relation is a key of its own.
2. Each tool is one transaction: of any number of server processes that change one entity, none loses what another
   wrote, and a relation never outlives its entities.
3. Entities and relations are given out in the order of their creation, by the clocks of the processes that made them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any, TypeVar

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field
from typing_extensions import TypedDict

from occamdb.aio import AsyncDatabase, AsyncTransaction

from ._support import run_named

__all__ = ["GRAPH_URI", "Entity", "Graph", "KnowledgeGraph", "Relation", "add_memory_tools"]

T = TypeVar("T")
GRAPH_URI = "memory://knowledge-graph"
KIND = "mcp-memory"
QUERY_LENGTH_MAX = 2048
_ENTITY, _RELATION = "entity/", "relation/"


class Entity(TypedDict):
    name: Annotated[str, Field(description="The name of the entity")]
    entityType: Annotated[str, Field(description="The type of the entity")]
    observations: Annotated[list[str], Field(description="What is known about the entity")]


Relation = TypedDict(
    "Relation",
    {
        "from": Annotated[str, Field(description="The name of the entity where the relation starts")],
        "to": Annotated[str, Field(description="The name of the entity where the relation ends")],
        "relationType": Annotated[str, Field(description="The type of the relation, in active voice")],
    },
)


class Additions(TypedDict):
    entityName: Annotated[str, Field(description="The entity to add the observations to")]
    contents: Annotated[list[str], Field(description="The observations to add")]


class Added(TypedDict):
    entityName: str
    addedObservations: list[str]


class Deletions(TypedDict):
    entityName: Annotated[str, Field(description="The entity that has the observations")]
    observations: Annotated[list[str], Field(description="The observations to delete")]


class Graph(TypedDict):
    entities: list[Entity]
    relations: list[Relation]


class Entities(TypedDict):
    entities: list[Entity]


class Relations(TypedDict):
    relations: list[Relation]


class Results(TypedDict):
    results: list[Added]


class Done(TypedDict):
    success: bool
    message: str


class KnowledgeGraph:
    """Entities, relations and observations in one run.

    Args:
      db: an open database.
      name: of the graph; each has a run of its own.
    """

    def __init__(self, db: AsyncDatabase, name: str = "default") -> None:
        self._db = db
        self._name = f"{KIND}/{name}"
        self.run_id = run_named(KIND, name)

    async def _change(self, write: Callable[[AsyncTransaction], T]) -> T:
        def create_and_write(txn: AsyncTransaction) -> T:
            txn.runs.get_or_create(self._name, tags=[KIND])
            return write(txn)

        return await self._db.transaction(self.run_id, create_and_write)

    async def create_entities(self, entities: Iterable[Entity]) -> list[Entity]:
        """Add those whose names are new; gives them."""
        given = list(entities)

        def write(txn: AsyncTransaction) -> list[Entity]:
            created = []
            for entity in given:
                key = _ENTITY + entity["name"]
                if not txn.kv.exists(key):
                    txn.kv.put(key, _stored(entity["entityType"], entity["observations"]))
                    created.append(entity)
            return created

        return await self._change(write)

    async def create_relations(self, relations: Iterable[Relation]) -> list[Relation]:
        """Add those that are new; gives them. All of their entities must be there."""
        given = list(relations)

        def write(txn: AsyncTransaction) -> list[Relation]:
            for relation in given:
                for end in (relation["from"], relation["to"]):
                    if not txn.kv.exists(_ENTITY + end):
                        raise _no_entity(end)
            created = []
            for relation in given:
                if not txn.kv.exists(_relation_key(relation)):
                    txn.kv.put(_relation_key(relation), {"at": time.time_ns()})
                    created.append(relation)
            return created

        return await self._change(write)

    async def add_observations(self, observations: Iterable[Additions]) -> list[Added]:
        """Add what each entity does not have yet; gives what was added to each."""
        given = list(observations)

        def write(txn: AsyncTransaction) -> list[Added]:
            results: list[Added] = []
            for additions in given:
                name = additions["entityName"]
                entity = txn.kv.get(_ENTITY + name)
                if entity is None:
                    raise _no_entity(name)
                known = set(entity["observations"])
                new = [text for text in additions["contents"] if text not in known]
                if new:
                    txn.kv.put(_ENTITY + name, {**entity, "observations": [*entity["observations"], *new]})
                results.append({"entityName": name, "addedObservations": new})
            return results

        return await self._change(write)

    async def delete_entities(self, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """Remove entities and their relations; gives the names that were there and those that were not."""
        given = list(names)

        def write(txn: AsyncTransaction) -> tuple[list[str], list[str]]:
            present = {name for name in dict.fromkeys(given) if txn.kv.delete(_ENTITY + name)}
            for key in txn.kv.list(_RELATION):
                start, _, end = _relation_parts(key)
                if start in given or end in given:
                    txn.kv.delete(key)
            return [name for name in given if name in present], [
                name for name in given if name not in present
            ]

        return await self._change(write)

    async def delete_observations(self, deletions: Iterable[Deletions]) -> tuple[int, list[str]]:
        """Remove observations; gives how many were there, and the entities that were not."""
        given = list(deletions)

        def write(txn: AsyncTransaction) -> tuple[int, list[str]]:
            count, missing = 0, []
            for deletion in given:
                name = deletion["entityName"]
                entity = txn.kv.get(_ENTITY + name)
                if entity is None:
                    missing.append(name)
                    continue
                kept = [text for text in entity["observations"] if text not in deletion["observations"]]
                if len(kept) < len(entity["observations"]):
                    count += len(entity["observations"]) - len(kept)
                    txn.kv.put(_ENTITY + name, {**entity, "observations": kept})
            return count, missing

        return await self._change(write)

    async def delete_relations(self, relations: Iterable[Relation]) -> int:
        """Remove relations; gives how many were there."""
        given = list(relations)
        return await self._change(lambda txn: sum(txn.kv.delete(_relation_key(each)) for each in given))

    def read(self, wanted: Callable[[Entity], bool] | None = None) -> Graph:
        """The entities that are wanted, and the relations that touch one of them, from one snapshot."""
        with self._db.begin(self.run_id, read_only=True) as txn:
            entities = [(found["at"], key, found) for key, found in txn.kv.list_with_values(_ENTITY)]
            relations = [(found["at"], key) for key, found in txn.kv.list_with_values(_RELATION)]
        rows: list[Entity] = [
            {
                "name": key.removeprefix(_ENTITY),
                "entityType": found["entityType"],
                "observations": list(found["observations"]),
            }
            for _, key, found in sorted(entities, key=lambda row: row[:2])
        ]
        chosen = rows if wanted is None else [entity for entity in rows if wanted(entity)]
        names = {entity["name"] for entity in chosen}
        ends = [_relation_parts(key) for _, key in sorted(relations)]
        return {
            "entities": chosen,
            "relations": [
                {"from": start, "to": end, "relationType": kind}
                for start, kind, end in ends
                if wanted is None or start in names or end in names
            ],
        }

    def search(self, query: str) -> Graph:
        """The entities with the text in their name, type or observations, whatever its case."""
        text = query.lower()

        def has(entity: Entity) -> bool:
            words = (entity["name"], entity["entityType"], *entity["observations"])
            return any(text in word.lower() for word in words)

        return self.read(has)


def _stored(kind: str, observations: list[str]) -> dict[str, Any]:
    return {"entityType": kind, "observations": observations, "at": time.time_ns()}


def _relation_key(relation: Relation) -> str:
    parts = [relation["from"], relation["relationType"], relation["to"]]
    return _RELATION + json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def _relation_parts(key: str) -> tuple[str, str, str]:
    start, kind, end = json.loads(key.removeprefix(_RELATION))
    return start, kind, end


def _no_entity(name: str) -> ToolError:
    return ToolError(f"Entity with name {name} not found")


# --- The tools -----------------------------------------------------------------------------------


def _told(shown: Any, structured: Any) -> CallToolResult:
    text = shown if isinstance(shown, str) else json.dumps(shown, indent=2, ensure_ascii=False)
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=structured)


def _done(message: str) -> CallToolResult:
    return _told(message, {"success": True, "message": message})


def add_memory_tools(
    server: MCPServer[Any], graph: KnowledgeGraph, guarded: Callable[[Callable[..., Awaitable[Any]]], Any]
) -> None:
    """Register the nine tools, and the whole graph as a resource.

    Args:
      server: the server.
      graph: what they work on.
      guarded: makes what occamdb raises an error that the model reads.
    """

    async def create_entities(entities: list[Entity]) -> Annotated[CallToolResult, Entities]:
        """Create multiple new entities in the knowledge graph. Those whose name exists are left as they are."""
        created = await graph.create_entities(entities)
        return _told(created, {"entities": created})

    async def create_relations(relations: list[Relation]) -> Annotated[CallToolResult, Relations]:
        """Create multiple new relations between entities of the knowledge graph, in active voice."""
        created = await graph.create_relations(relations)
        return _told(created, {"relations": created})

    async def add_observations(observations: list[Additions]) -> Annotated[CallToolResult, Results]:
        """Add new observations to existing entities of the knowledge graph."""
        results = await graph.add_observations(observations)
        return _told(results, {"results": results})

    async def delete_entities(entityNames: list[str]) -> Annotated[CallToolResult, Done]:
        """Delete multiple entities and their relations from the knowledge graph."""
        deleted, missing = await graph.delete_entities(entityNames)
        if not missing:
            return _done("Entities deleted successfully")
        return _done(
            f"Deleted {len(deleted)} of {len(entityNames)} entities. Not found: {', '.join(missing)}"
        )

    async def delete_observations(deletions: list[Deletions]) -> Annotated[CallToolResult, Done]:
        """Delete specific observations from entities of the knowledge graph."""
        count, missing = await graph.delete_observations(deletions)
        wanted = sum(len(deletion["observations"]) for deletion in deletions)
        if count == wanted:
            return _done("Observations deleted successfully")
        lacking = f" Entities not found: {', '.join(missing)}" if missing else ""
        return _done(f"Deleted {count} of {wanted} observations.{lacking}")

    async def delete_relations(relations: list[Relation]) -> Annotated[CallToolResult, Done]:
        """Delete multiple relations from the knowledge graph."""
        count = await graph.delete_relations(relations)
        if count == len(relations):
            return _done("Relations deleted successfully")
        return _done(f"Deleted {count} of {len(relations)} relations. The rest matched nothing.")

    async def read_graph() -> Annotated[CallToolResult, Graph]:
        """Read the entire knowledge graph."""
        found = graph.read()
        return _told(found, found)

    async def search_nodes(
        query: Annotated[str, Field(max_length=QUERY_LENGTH_MAX, description="Text to look for")],
    ) -> Annotated[CallToolResult, Graph]:
        """Search for nodes by their names, types and observations."""
        found = graph.search(query)
        return _told(found, found)

    async def open_nodes(names: list[str]) -> Annotated[CallToolResult, Graph]:
        """Open specific nodes of the knowledge graph by their names."""
        wanted = set(names)
        found = graph.read(lambda entity: entity["name"] in wanted)
        return _told(found, found)

    creating = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False)
    deleting = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True)
    reading = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True)
    groups: tuple[tuple[ToolAnnotations, tuple[Callable[..., Awaitable[Any]], ...]], ...] = (
        (creating, (create_entities, create_relations, add_observations)),
        (deleting, (delete_entities, delete_observations, delete_relations)),
        (reading, (read_graph, search_nodes, open_nodes)),
    )
    for hints, tools in groups:
        for tool in tools:
            title = tool.__name__.replace("_", " ").title()
            server.add_tool(guarded(tool), title=title, annotations=hints)

    @server.resource(GRAPH_URI, name="knowledge-graph", title="Knowledge Graph", mime_type="application/json")
    def knowledge_graph() -> str:
        """The full knowledge graph with all entities and relations."""
        return json.dumps(graph.read(), indent=2, ensure_ascii=False)
