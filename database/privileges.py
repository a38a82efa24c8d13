"""What a session may do that no service may."""

from __future__ import annotations

from typing import Final

# What this session may do, or may come to do through roles it is a member of (`pg_has_role` says yes to all of them
# for a superuser). The owner of a schema or database may drop what others own in it.
TOO_MUCH: Final = """
SELECT why FROM (
    SELECT 1, format('The role %s is a superuser.', rolname) FROM pg_roles
        WHERE rolsuper AND pg_has_role(session_user, oid, 'MEMBER')
    UNION ALL
    SELECT 2, format('The role %s bypasses row-level security (BYPASSRLS).', rolname) FROM pg_roles
        WHERE rolbypassrls AND pg_has_role(session_user, oid, 'MEMBER')
    UNION ALL
    SELECT 3, format('The role %s may make roles, replicate, or use the server''s files.', rolname) FROM pg_roles
        WHERE (rolcreaterole OR rolreplication OR rolname IN ('pg_execute_server_program', 'pg_write_server_files',
               'pg_read_server_files', 'pg_write_all_data')) AND pg_has_role(session_user, oid, 'MEMBER')
    UNION ALL
    SELECT 4, format('The role %s owns the database %s.', pg_get_userbyid(datdba), datname) FROM pg_database
        WHERE datname = current_database() AND pg_has_role(session_user, datdba, 'MEMBER')
    UNION ALL
    SELECT 5, format('The role %s owns the table %s.', pg_get_userbyid(relowner), c.oid::regclass) FROM pg_class c
        WHERE relkind IN ('r', 'p') AND relpersistence <> 't' AND pg_has_role(session_user, relowner, 'MEMBER')
) AS rights (rank, why) ORDER BY rank, why LIMIT 1
"""
"""One row with one reason, or no row."""
