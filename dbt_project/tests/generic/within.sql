{# Fails with every row whose `column_name` lies outside [at_least, at_most]. NULL is within. #}
{% test within(model, column_name, at_least=none, at_most=none) %}
    select *
    from {{ model }}
    where false
    {% if at_least is not none %} or {{ column_name }} < {{ at_least }} {% endif %}
    {% if at_most is not none %} or {{ column_name }} > {{ at_most }} {% endif %}
{% endtest %}
