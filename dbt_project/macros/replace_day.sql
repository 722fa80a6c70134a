{# The rows that a run of a mart writes: those of `--vars '{day: ...}'`, or of every day when the table is new or
   no day is named. #}
{% macro of_the_day(column="submission_day") -%}
    {%- if var("day", none) and is_incremental() -%}
        {{ column }} = date '{{ var("day") }}'
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}


{# Incremental strategy `replace_day`: takes the day's rows away, also those that have no successor, and writes the
   new ones, in one transaction. Other days are left alone. #}
{% macro get_incremental_replace_day_sql(arg_dict) -%}
    {%- set columns = arg_dict["dest_columns"] | map(attribute="quoted") | join(", ") -%}
    delete from {{ arg_dict["target_relation"] }} where {{ of_the_day() }};

    insert into {{ arg_dict["target_relation"] }} ({{ columns }})
    select {{ columns }} from {{ arg_dict["temp_relation"] }};
{%- endmacro %}


{# What generic tests of the marts look at: the rows of the day at hand (see `where: __day__` in the models' YAML). #}
{% macro get_where_subquery(relation) -%}
    {%- set where = config.get("where", "") -%}
    {%- if where == "__day__" -%}
        (select * from {{ relation }} where {{ day_filter() }}) tested
    {%- elif where -%}
        (select * from {{ relation }} where {{ where }}) tested
    {%- else -%}
        {{ relation }}
    {%- endif -%}
{%- endmacro %}


{# The same filter for tests, which are never incremental. #}
{% macro day_filter(column="submission_day") -%}
    {%- if var("day", none) -%} {{ column }} = date '{{ var("day") }}' {%- else -%} true {%- endif -%}
{%- endmacro %}
