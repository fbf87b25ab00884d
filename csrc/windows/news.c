/* What there is to be told of a port's children and pipes, in the order in which it came;
 * job.c has its own. */
#include "internal.h"

void tell_child(ap_port *port, ap_child *child) {
  if (child->in_news) return;
  child->in_news = true;
  child->next_news = NULL;
  *port->child_news_end = child;
  port->child_news_end = &child->next_news;
}

void tell_pipe(ap_port *port, ap_pipe *pipe) {
  if (pipe->in_news) return;
  pipe->in_news = true;
  pipe->next_news = NULL;
  *port->pipe_news_end = pipe;
  port->pipe_news_end = &pipe->next_news;
}

bool has_news(const ap_port *port) {
  return port->child_news || port->pipe_news || port->job_news;
}

ap_child *next_child_news(ap_port *port) {
  ap_child *child = port->child_news;
  port->child_news = child->next_news;
  if (!port->child_news) port->child_news_end = &port->child_news;
  child->in_news = false;
  return child;
}

ap_pipe *next_pipe_news(ap_port *port) {
  ap_pipe *pipe = port->pipe_news;
  port->pipe_news = pipe->next_news;
  if (!port->pipe_news) port->pipe_news_end = &port->pipe_news;
  pipe->in_news = false;
  return pipe;
}
