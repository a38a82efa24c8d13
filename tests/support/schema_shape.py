"""The schema of a database as lines of text, to compare one with another."""

from __future__ import annotations

from collections.abc import Collection

from devstack import sql

# Members of extensions are not ours.
_OURS = """
SELECT format('column %s.%s %s %s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
              CASE WHEN a.attnotnull THEN 'not null' END, pg_get_expr(d.adbin, d.adrelid), l.collname) AS line
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
LEFT JOIN pg_collation l ON l.oid = a.attcollation
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
UNION ALL SELECT format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype NOT IN ('n', 't')
UNION ALL SELECT format('index %s %s valid %s', i.indrelid::regclass, pg_get_indexdef(i.indexrelid), i.indisvalid)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relnamespace = 'public'::regnamespace
"""
_AND_THE_REST = """
UNION ALL SELECT 'trigger ' || pg_get_triggerdef(t.oid) FROM pg_trigger t WHERE NOT tgisinternal
UNION ALL SELECT format('policy %s %s %s %s %s %s', polrelid::regclass, polname, polcmd, polroles::regrole[],
                        pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
FROM pg_policy JOIN pg_class c ON c.oid = polrelid WHERE c.relnamespace = 'public'::regnamespace
UNION ALL SELECT format('table %s %s security %s %s options %s', relname, relkind, relrowsecurity, relforcerowsecurity,
                        reloptions)
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')
UNION ALL SELECT format('rights on %s: %s', c.relname, a)
FROM pg_class c, unnest(coalesce(c.relacl, acldefault('r', c.relowner))) AS a
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v', 'S')
UNION ALL SELECT format('view %s %s', c.relname, pg_get_viewdef(c.oid)) FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'v'
UNION ALL SELECT format('type %s %s values %s', t.typname, t.typtype, (
    SELECT array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid))
FROM pg_type t WHERE t.typnamespace = 'public'::regnamespace AND t.typtype IN ('e', 'd')
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = t.oid AND d.deptype = 'e')
UNION ALL SELECT format('rights on schema %s: %s', n.nspname, a)
FROM pg_namespace n, unnest(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS a WHERE n.nspname = 'log'
UNION ALL SELECT format('rights on %s.%s: %s', attrelid::regclass, attname, a)
FROM pg_attribute, unnest(attacl) AS a WHERE attacl IS NOT NULL AND attrelid::regclass::text NOT LIKE '%pg_%'
UNION ALL SELECT format('function %s rights %s', pg_get_functiondef(p.oid), a)
FROM pg_proc p, unnest(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
WHERE p.pronamespace = 'public'::regnamespace AND p.prokind = 'f'
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
"""


def shape(url: str) -> list[str]:
    """All of ours in the schema `public`: tables, views, enums, constraints, indexes, triggers, policies, rights,
    functions; and the rights on the schema `log`.
    """
    return _lines(url, _OURS + _AND_THE_REST)


def tables_shape(url: str, tables: Collection[str]) -> list[str]:
    """Columns, constraints and indexes of some tables."""
    return [line for line in _lines(url, _OURS) if line.split()[1].partition(".")[0] in tables]


def _lines(url: str, query: str) -> list[str]:
    joined = sql.value(url, f"SELECT string_agg(line, chr(1) ORDER BY line) FROM ({query}) AS shape")
    return str(joined).split(chr(1)) if joined else []
